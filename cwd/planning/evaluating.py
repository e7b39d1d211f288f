"""What the evaluations of trained models cost: measured where some were made, else bounded by the tasks' questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from cwd.evidence.grid import Cell
from cwd.evidence.study import State
from cwd.planning.bases import known_tasks
from cwd.planning.work import Work
from cwd.runs.evaluations import read_evaluation
from cwd.suites import Suite

LENGTH = 2048  # tokens that each answer is taken to have, with its question and the examples before it; most have fewer


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of an artifact's runs on its suite.

    Attributes:
        runs: that are not evaluated yet, those that are still to be trained among them.
        seconds: of one run, the median of those that were evaluated; None if none was.
        sequences: that a model reads, about; None if the suite's tasks are not known.
        flops: operations of all of `runs`, at most; None likewise.
    """

    artifact: str
    suite: str
    runs: int
    seconds: float | None
    sequences: int | None
    flops: float | None


def evaluations_of(state: State, work: Callable[[Any], Work | None]) -> Evaluations | None:
    """Those of an artifact that has a suite; `work` says the size of a run, None where it is not known."""
    if state.suite is None:
        return None
    suite, sequences = state.suite, _sequences(state.suite)
    took, open_runs = [], []
    for point in state.points:
        config = point.config or point.like
        for seed in point.seeds if config else ():
            cell = point.cells.get(seed)
            seconds = _seconds(cell, suite) if cell else None
            if seconds is None:
                open_runs.append(config)
            else:
                took.append(seconds)
    works = [work(config) for config in open_runs] if sequences else []
    known = [one.forward * LENGTH * sequences for one in works if one] if sequences else []
    flops = sum(known) if known and len(known) == len(open_runs) else None
    return Evaluations(
        state.artifact.name, suite.name, len(open_runs), median(took) if took else None, sequences, flops
    )


def _sequences(suite: Suite) -> int | None:
    known = known_tasks()
    names = [entry.task for entry in suite.tasks]
    return sum(known[name] for name in names) if all(name in known for name in names) else None


def _seconds(cell: Cell, suite: Suite) -> float | None:
    """Seconds of a run's evaluation on all the suite's tasks; None if one is missing."""
    if cell.record is None:
        return None
    found = [read_evaluation(cell.record, suite.name, entry.task) for entry in suite.tasks]
    return sum(one.get("seconds", 0.0) for one in found if one) if all(found) else None
