"""SIGINT and SIGTERM: finish the step, save, leave. A second SIGINT leaves at once."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


class Interrupted(SystemExit):
    """A signal ended the run after a checkpoint. Exits with 128 + the signal's number, as shells expect."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(128 + number)
        self.step = step


def follow_parent() -> None:
    """In a sweep's worker: when the process that started it dies, this one gets SIGTERM, and saves. Linux only."""
    if multiprocessing.parent_process() is not None and sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Interrupts:
    """While entered, notes the first SIGINT or SIGTERM in ``signal``, which the trainer looks at after each step."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that came
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Only a person repeats SIGINT; SIGTERM can come once for each thread of a parent that dies.
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
