"""SIGINT and SIGTERM: finish the step, save, leave. The second one leaves at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator


class Interrupted(SystemExit):
    """A signal ended the run after a checkpoint. Exits with 128 + the signal's number, as shells expect."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(128 + number)
        self.step = step


class Interrupts:
    """While entered, turns the first SIGINT or SIGTERM into a request that the trainer asks for after each step."""

    def __init__(self) -> None:
        self._number = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process was signalled; all processes agree."""
        if accelerator.num_processes > 1:
            flag = torch.tensor(self._number, device=accelerator.device)
            self._number = int(accelerator.reduce(flag, reduction="sum").item() and (self._number or signal.SIGTERM))
        return self._number != 0

    def leave(self, step: int) -> NoReturn:
        """Ends the run."""
        raise Interrupted(self._number, step)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            raise KeyboardInterrupt
        self._number = number
