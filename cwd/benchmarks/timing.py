"""Times things by turns: each call comes right after the one that it is compared with.

Another process may slow the machine down at any time; a ratio of neighbouring calls feels that least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch


def _nothing() -> None:
    return None


class Turn(NamedTuple):
    """What is timed, and what must be done before each time, untimed."""

    call: Callable[[], Any]
    prepare: Callable[[], Any] = _nothing


class Ratio(NamedTuple):
    """Ours against theirs. Milliseconds are medians; low and high are the ratio's first and last decile."""

    ours: float
    theirs: float
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def time_by_turns(turns: Sequence[Turn], repeats: int, warmups: int = 2) -> list[list[float]]:
    """Milliseconds of `repeats` calls of each turn, one after the other in every round.

    The first `warmups` rounds do not count: they compile and allocate. A GPU's work is waited for.
    """
    times: list[list[float]] = [[] for _ in turns]
    for _ in range(warmups + repeats):
        for turn, found in zip(turns, times, strict=True):
            turn.prepare()
            _wait()
            start = time.perf_counter()
            turn.call()
            _wait()
            found.append((time.perf_counter() - start) * 1e3)
    return [found[warmups:] for found in times]


def ratio_of_neighbours(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of each call of ours to the neighbouring one of theirs: median and deciles over the rounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    deciles = quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios
    return Ratio(median(ours), median(theirs), median(ratios), deciles[0], deciles[-1])


def compare(ours: Turn, theirs: Turn, repeats: int) -> Ratio:
    """:func:`time_by_turns` and :func:`ratio_of_neighbours` of two."""
    return ratio_of_neighbours(*time_by_turns([ours, theirs], repeats))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
