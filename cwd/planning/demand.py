"""Which runs artifacts ask for: done, shared with other artifacts, missing, and those that wait for something."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cwd.config import identity_of
from cwd.evidence.artifacts import Point
from cwd.evidence.study import State

Plain = dict[str, Any]
ENDED = ("done", "diverged")
THEORY = "one core and minutes: scripts/theory.py"


@dataclass(frozen=True)
class Run:
    """One run that is asked for."""

    config: Plain
    state: str

    @property
    def ended(self) -> bool:
        """Whether it need not be done."""
        return self.state in ENDED


@dataclass
class Demand:
    """What one artifact asks for at one size.

    Attributes:
        runs: by what they are, so that a run that two demands share is one.
        waiting: a configuration of the same cost for each run whose lambda is not chosen yet; at most so many, as the
            choice may fall on a run that is asked for anyway.
        needs: what must exist before the rest can be run.
    """

    artifact: str
    size: str
    runs: dict[str, Run] = field(default_factory=dict)
    waiting: list[Plain] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)  # of the runs, those that another artifact asks for too

    @property
    def missing(self) -> dict[str, Run]:
        """The runs to do."""
        return {key: run for key, run in self.runs.items() if not run.ended}


def demands_of(states: Sequence[State]) -> list[Demand]:
    """A demand for each artifact and size, the grids from which lambdas are chosen included."""
    found = [demand for state in states for demand in _demands(state)]
    owners: dict[str, set[str]] = {}
    for demand in found:
        for key in demand.runs:
            owners.setdefault(key, set()).add(demand.artifact)
    for demand in found:
        demand.shared = {key for key in demand.runs if len(owners[key]) > 1}
    return found


def together(demands: Sequence[Demand]) -> Demand:
    """All of them as one, each run once."""
    names = list(dict.fromkeys(demand.artifact for demand in demands))
    whole = Demand(", ".join(names), ", ".join(dict.fromkeys(one.size for one in demands)))
    for demand in demands:
        whole.runs.update(demand.runs)
        whole.waiting += demand.waiting
        whole.needs += [need for need in demand.needs if need not in whole.needs]
        whole.shared |= demand.shared
    return whole


def _demands(state: State) -> Iterator[Demand]:
    points = [*state.bases, *state.points, *state.tuning]
    if state.checks:
        yield Demand(state.artifact.name, "", needs=[THEORY])
    for size in dict.fromkeys(point.coordinates["size"] for point in points):
        demand = Demand(state.artifact.name, size)
        here = [point for point in points if point.coordinates["size"] == size]
        for point in here:
            _add(demand, point, here)
        yield demand


def _add(demand: Demand, point: Point, others: Sequence[Point]) -> None:
    config = point.config or point.like
    if config is not None:
        for seed in dict.fromkeys((*point.cells, *(() if point.config else (*point.seeds, *point.tuning_seeds)))):
            state = point.cells[seed].state if seed in point.cells else "missing"
            demand.runs[repr(identity_of({**config, "seed": seed}))] = Run({**config, "seed": seed}, state)
        return
    own = [name for name in ("optimizer", "arm") if name in point.coordinates]
    like = [
        one
        for one in others
        if one.config is not None and all(one.coordinates[name] == point.coordinates[name] for name in own)
    ]
    if point.coordinates["choice"] == "own" and like:
        demand.waiting += [like[0].on(seed) for seed in point.seeds]
    if point.needs and point.needs not in demand.needs:
        demand.needs.append(point.needs)
