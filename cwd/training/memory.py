"""How the C library hands out memory to training on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Lets glibc keep what tensors free, instead of giving it back and faulting every page in again in the next step.

    Worth a fifth of a small model's step (scripts/benchmark.py trainer). Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    for option, size in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
        mallopt(option, size)
