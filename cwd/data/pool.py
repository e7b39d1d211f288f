"""Parts packed by several processes at once. How many there are, and which takes which, changes no byte."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.data.packing import Part, Stopped, pack
from cwd.data.tokenizers import Tokenizer, open_tokenizer
from cwd.errors import UserError

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
Counts = dict[str, dict[str, Any]]  # of a part: each split's documents, tokens, bytes and SHA-256


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pack_all(
    parts: list[Part], spec: str, work: Path, processes: int, show: Callable[[int, int], None]
) -> list[Counts]:
    """Packs every part. Returns what `pack` returned of each, in their order.

    Args:
        spec: the tokenizer, which was saved in `work`. show: called with a part's number and its bytes read.

    Raises:
        UserError: the first that a part raised; the others save what they have before it is raised.
    """
    if processes == 1:
        tokenizer = open_tokenizer(spec, work)
        return [
            pack(part, tokenizer, lambda read, number=number: show(number, read), lambda: False)  # type: ignore[misc]
            for number, part in enumerate(parts)
        ]
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    queue, stop = context.SimpleQueue(), context.Event()
    entered = (spec, work, max(1, processors() // processes), queue, stop, os.getpid())
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_enter, initargs=entered) as pool:
        waiting = {pool.submit(_work, number, part): number for number, part in enumerate(parts)}
        found: dict[int, Counts] = {}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                while not queue.empty():
                    show(*queue.get())
                for future in done:
                    found[waiting.pop(future)] = future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process that packs was killed (for want of memory?); the same command goes on from what was saved, "
                "with fewer if --processes says so"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [found[number] for number in range(len(parts))]


@dataclass
class _Worker:
    tokenizer: Tokenizer
    queue: Any
    stop: Any


_worker: list[_Worker] = []  # in a process of the pool, one


def _enter(spec: str, work: Path, threads: int, queue: Any, stop: Any, parent: int) -> None:
    """The start of a process: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise Stopped
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers library's threads
    _worker.append(_Worker(open_tokenizer(spec, work), queue, stop))


def _work(number: int, part: Part) -> Counts:
    worker = _worker[0]
    return pack(part, worker.tokenizer, lambda read: worker.queue.put((number, read)), worker.stop.is_set)
