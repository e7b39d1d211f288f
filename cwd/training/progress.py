"""What a person sees of a run: a bar in a terminal, plain lines elsewhere, or only the result."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 5.0  # at most one plain line in this time


class Progress:
    """Shows a run as "bar", "lines", "summary" (the result only) or "none" (processes that are not the first)."""

    def __init__(self, kind: str, steps: int, unit: str) -> None:
        self._kind = kind
        self._steps, self._unit = steps, unit
        self._bar: Any = None
        self._task: Any = None
        self._printed = 0.0

    @staticmethod
    def resolve(kind: str) -> str:
        """ "auto" as the terminal has it."""
        return kind if kind != "auto" else "bar" if sys.stdout.isatty() else "lines"

    def say(self, text: str) -> None:
        """A line about the run, not shown where only results are."""
        if self._kind in ("bar", "lines"):
            self._print(text)

    def warn(self, text: str) -> None:
        """A line that matters wherever it happens."""
        self._print(text)

    def result(self, text: str) -> None:
        """What came out."""
        if self._kind != "none":
            self._print(text)

    def advance(self, step: int, loss: float, rate: float, left: float) -> None:
        """`step` updates are done; the loss of the last ones, units per second, and seconds to the end."""
        if self._kind == "bar":
            self._open_bar()
            self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=f"{_short(rate)} {self._unit}/s")
        elif self._kind == "lines" and (time.monotonic() - self._printed > LINE_SECONDS or step == self._steps):
            self._printed = time.monotonic()
            speed = f"{_short(rate)} {self._unit}/s  {duration(left)} left"
            self._print(f"step {step:>{len(str(self._steps))}}/{self._steps}  loss {loss:.4f}  {speed}")

    def close(self) -> None:
        """Takes the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open_bar(self) -> None:
        if self._bar is not None:
            return
        from rich import progress

        columns = [
            progress.BarColumn(),
            progress.TextColumn("step {task.completed}/{task.total}"),
            progress.TextColumn("loss {task.fields[loss]}"),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
        ]
        self._bar = progress.Progress(*columns)
        self._task = self._bar.add_task("train", total=self._steps, loss="", rate="")
        self._bar.start()

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s", "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
