"""SIGINT, SIGTERM, SIGUSR1, SIGUSR2: finish the step, save, leave. A second SIGINT leaves at once.

Schedulers send one of the last three before they take a machine away.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
import threading
from types import FrameType
from typing import Any

NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
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
    """While entered, notes the first of NOTED in ``signal``, which the trainer looks at after each step."""

    def __init__(self) -> None:
        self.signal = 0  # the number of the signal that came
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in NOTED:
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
