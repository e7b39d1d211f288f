"""The runs behind the page: what each was, where it ran, how its curves went, small enough for hundreds in one file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cwd.evidence.grid import Cell
from cwd.evidence.listing import flatten
from cwd.evidence.measures import Curve, curve
from cwd.evidence.study import State
from cwd.evidence.tables import name_of
from cwd.runs import Record

POINTS = 60  # of a curve
CURVES = {  # what a run's curves show: how many points of it, and how many significant digits; results keep all
    "eval_loss": (POINTS, 6),
    "train_loss": (POINTS, 6),
    "grad_rms": (POINTS // 2, 4),
    "strict_ratio": (POINTS // 2, 4),
    "rms_x": (POINTS // 2, 4),
}
MOST = 100  # values of a summary that are shown; a theory check's has thousands


class Runs:
    """Collects the runs of the page; each is kept once, whatever asks for it.

    A configuration is kept as what differs from the commonest value of each key; these differences, environments and
    the steps of curves once for all runs that share them.
    """

    def __init__(self) -> None:
        self._flat: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._environments: dict[str, int] = {}
        self._steps: dict[tuple[int, ...], int] = {}

    def add(self, state: State, anchor: str) -> list[str]:
        """Adds every run of the artifact that has a record; returns their keys."""
        keys: dict[str, None] = {}
        for where, cell in _cells(state):
            if cell.record is None:
                continue
            keys[cell.record.key] = None
            if cell.record.key not in self._rows:
                self._add(cell.record, cell, {"scale": state.scale, **where})
        for check in state.checks:
            if check.record:
                keys[check.record.key] = None
                if check.record.key not in self._rows:
                    where = {"scale": "theory", "optimizer": check.name}
                    self._add(check.record, Cell(check.record.description["identity"], check.record), where)
        for key in keys:
            self._rows[key]["artifacts"].append(anchor)
        return list(keys)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> list[dict[str, Any]]:
        """A line for each run, by where it is in its grid."""
        order = ("scale", "size", "optimizer", "arm", "lambda", "seed")
        return sorted(self._rows.values(), key=lambda row: [str(row.get(name, "")) for name in order])

    def island(self) -> dict[str, Any]:
        """Everything about every run, as plain data for the page's script."""
        base = _commonest(self._flat.values())
        shared: dict[str, int] = {}
        runs = {}
        for key, row in sorted(self._rows.items()):
            differences = [json.dumps(pair) for pair in _difference(self._flat[key], base).items()]
            runs[key] = {**row, "config": [shared.setdefault(text, len(shared)) for text in differences]}
        return {
            "runs": runs,
            "base": base,
            "differences": [json.loads(text) for text in shared],
            "environments": [json.loads(text) for text in self._environments],
            "steps": [list(steps) for steps in self._steps],
        }

    def _add(self, record: Record, cell: Cell, where: dict[str, Any]) -> None:
        status, summary = record.status, cell.summary or {}
        self._flat[record.key] = dict(flatten(record.config))
        told = {name: status[name] for name in ("message", "traceback", "updated", "host") if status.get(name)}
        kept = dict(list(flatten(summary))[:MOST])
        kept.pop("checksum", None)
        self._rows[record.key] = {
            "key": record.key,
            **where,
            "state": cell.state,
            "step": status["step"],
            "steps": (record.config.get("training") or {}).get("steps"),
            "summary": kept,
            "artifacts": [],
            "data": (record.description.get("data") or {}).get("fingerprint"),
            "environments": list(self._starts(record)),
            "curves": dict(self._curves(cell)),
            **told,
        }

    def _starts(self, record: Record) -> Iterator[list[Any]]:
        """[when, number of the environment] of each start of the run."""
        for line in starts(record):
            text = json.dumps({name: value for name, value in line.items() if name != "started"}, sort_keys=True)
            yield [line.get("started"), self._environments.setdefault(text, len(self._environments))]

    def _curves(self, cell: Cell) -> Iterator[tuple[str, list[Any]]]:
        """(name, [number of its steps, values])."""
        for name, (steps, values) in curves_of(cell).items():
            yield name, [self._steps.setdefault(tuple(steps), len(self._steps)), values]


def curves_of(cell: Cell) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (steps, values) of a run's curves, thinned and rounded as CURVES says."""
    found = {}
    for name, (most, digits) in CURVES.items():
        points = thin(curve(cell, name), most)
        if points:
            found[name] = [step for step, _ in points], [float(f"{value:.{digits}g}") for _, value in points]
    return found


def thin(points: Curve, most: int = POINTS) -> Curve:
    """At most so many of the points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def starts(record: Record) -> list[dict[str, Any]]:
    """The lines of environment.jsonl, oldest first; what cannot be read is left out."""
    found = []
    try:
        lines = (record.folder / "environment.jsonl").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        found += [value] if isinstance(value, dict) else []
    return found


def where_of_run(coordinates: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the page says of a run in a line."""
    names = ("size", "optimizer", "arm", "lambda", "lr", "schedule")
    return {**{name: coordinates[name] for name in names if coordinates.get(name) is not None}, "seed": seed}


def label_of(where: dict[str, Any]) -> str:
    """ "AdamW cautious, lambda 0.15, seed 3"."""
    head = " ".join(name_of(where[name]) for name in ("optimizer", "arm") if name in where)
    tail = [f"{name} {name_of(where[name])}" for name in ("lambda", "seed") if name in where]
    return ", ".join([head, *tail])


def _cells(state: State) -> Iterator[tuple[dict[str, Any], Cell]]:
    for point in (*state.bases, *state.points, *state.tuning):
        for seed, cell in point.cells.items():
            where = where_of_run(point.coordinates, seed)
            yield {**where, "label": label_of(where)}, cell


def _commonest(flat: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of each key, the value that most configurations have."""
    counts: dict[str, Counter[str]] = {}
    for one in flat:
        for name, value in one.items():
            counts.setdefault(name, Counter())[json.dumps(value)] += 1
    return {name: json.loads(max(sorted(count), key=count.__getitem__)) for name, count in sorted(counts.items())}


def _difference(flat: dict[str, Any], base: dict[str, Any]) -> dict[str, Sequence[Any]]:
    """Name -> [value] where it is another than in `base`, [] where it has no such name."""
    changed = {name: [value] for name, value in flat.items() if value != base.get(name) or name not in base}
    return {**changed, **{name: [] for name in base if name not in flat}}
