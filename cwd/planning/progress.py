"""How far a sweep is: the state of every run that artifacts ask for, what is left of it, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cwd.config import identity_of
from cwd.evidence.grid import Cell, RunsFolder, find_cells
from cwd.evidence.page.runs import curves_of, label_of, starts, where_of_run
from cwd.evidence.study import State
from cwd.planning.forecast import Forecaster, ladder_seconds, past_runs
from cwd.runs.record import FINISHED

ON_CORES = ("smoke", "laptop")  # scales whose runs this machine's cores make
OPEN = ("running", "failed", "interrupted", "diverged")  # the states that are listed run by run
MOST = 60  # runs that are listed


class Progress:
    """The runs that artifacts ask for, looked up again each time that it is asked.

    Args:
        states: the artifacts; which runs they ask for is taken from here and stays.
        runs: the runs folder.
    """

    def __init__(self, states: Sequence[State], runs: Path) -> None:
        self._runs = runs
        self._wanted = {repr(identity_of(config)): (label, config) for label, config in _wanted(states)}
        self._identities = [identity_of(config) for _, config in self._wanted.values()]
        self._waiting = sum(len(point.seeds) for state in states for point in state.points if point.config is None)
        device = "cpu" if all(state.scale in ON_CORES for state in states) else ""
        self._forecaster = Forecaster(past_runs(runs, device), ladder_seconds(states))
        self._ended: dict[str, str] = {}  # key -> state of runs that will not change any more
        self._at_first: int | None = None

    def snapshot(self) -> dict[str, Any]:
        """Plain data: counts by state, seconds left with what runs now, and the runs that are open, with curves.

        ``work_left`` is in seconds of one device; ``seconds_left`` divides it by the devices at work now, and is null
        where none is.
        """
        cells = find_cells(self._identities, RunsFolder(self._runs))
        states = [self._state(cell) for cell in cells]
        finished = sum(state in FINISHED for state in states)
        self._at_first = finished if self._at_first is None else self._at_first
        open_runs = list(zip(self._wanted.values(), cells, states, strict=True))
        left, sources, unknown = self._left(open_runs)
        devices = sum(_devices(cell) for cell, state in zip(cells, states, strict=True) if state == "running")
        listed = sorted((run for run in open_runs if run[2] in OPEN), key=lambda run: OPEN.index(run[2]))
        return {
            "wanted": len(cells),
            "waiting": self._waiting,
            "finished": finished,
            "changed": finished != self._at_first,
            "counts": dict(Counter(states)),
            "running": states.count("running"),
            "work_left": left,
            "seconds_left": left / devices if devices and left else None,
            "source": ", ".join(sources),
            "unknown": unknown,
            "runs": [_row(label, cell, state) for (label, _), cell, state in listed[:MOST]],
        }

    def _state(self, cell: Cell) -> str:
        key = cell.record.key if cell.record else ""
        if key in self._ended:
            return self._ended[key]
        if cell.state in FINISHED:
            self._ended[key] = cell.state
        return cell.state

    def _left(self, runs: Sequence[tuple[tuple[str, Any], Cell, str]]) -> tuple[float, list[str], int]:
        """Device seconds of what is not done, where they come from, and of how many runs nothing says them."""
        seconds, unknown, sources = 0.0, 0, dict[str, None]()
        for (_, config), cell, state in runs:
            if state in FINISHED:
                continue
            found = self._forecaster.duration(config)
            if found is None:
                unknown += 1
                continue
            step = cell.record.status["step"] if cell.record else 0
            seconds += found.seconds * (1 - step / config["training"]["steps"]) + self._forecaster.between[0]
            sources[found.source] = None
        return seconds, list(sources), unknown


def _wanted(states: Sequence[State]) -> Iterator[tuple[str, dict[str, Any]]]:
    for state in states:
        for point in (*state.bases, *state.points, *state.tuning):
            for seed in point.cells:
                size = str(point.coordinates.get("size", ""))
                yield f"{size} {label_of(where_of_run(point.coordinates, seed))}".strip(), point.on(seed)


def _devices(cell: Cell) -> int:
    """How many devices a run that is going on takes."""
    lines = starts(cell.record) if cell.record else []
    return int(lines[-1].get("processes", 1)) if lines else 1


def _row(label: str, cell: Cell, state: str) -> dict[str, Any]:
    assert cell.record is not None
    status, curves = cell.record.status, curves_of(cell)
    losses = curves.get("train_loss") or curves.get("eval_loss")
    mode, name = cell.identity["decay"]["mode"], cell.identity["optimizer"]["name"]
    return {
        "key": cell.record.key,
        "label": label,
        "arm": mode,
        "optimizer": name,
        "state": state,
        "step": losses[0][-1] if losses and state == "running" else status["step"],
        "steps": cell.identity["training"]["steps"],
        "loss": losses[1][-1] if losses else None,
        "message": status.get("message"),
        "traceback": status.get("traceback"),
        "curves": curves if state == "running" else {},
    }
