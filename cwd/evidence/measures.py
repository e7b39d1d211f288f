"""What a claim or a table reads from a run: its final result, or a mean over a part of one of its curves.

A metric is written

    loss                        a value of the summary, or of the configuration (hidden_size, steps)
    eval_loss@0.6-1             the mean of a curve over the evaluations from 60% of the steps to the end
    strict_ratio@0              a curve's value nearest to that fraction of the steps
    rms_x:layers.0.*.weight@1   a curve of single tensors; the geometric mean over those that match
    local:local_order           a task's score in an evaluation on a suite;   local:local_order%, in percent
    a, b                        the mean of several;   a - b, a difference

Curves: eval_loss, eval_accuracy, train_loss; grad_rms (the gradient's norm before clipping over the root of the number
of parameters); mask_ratio, strict_ratio, rms_x, rms_u, rms_g (telemetry over all tensors).
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from cwd.errors import UserError
from cwd.evidence.grid import Cell
from cwd.runs import read_metrics
from cwd.runs.evaluations import read_evaluation

Curve = list[tuple[int, float]]  # (updates done, value)
LINES = {"eval_loss": ("eval", "loss"), "eval_accuracy": ("eval", "accuracy"), "train_loss": ("train", "loss")}
TELEMETRY = ("mask_ratio", "strict_ratio", "rms_x", "rms_u", "rms_g")
CURVES = (*LINES, "grad_rms", *TELEMETRY)


def measure(cell: Cell, metric: str) -> Any:
    """The metric of a run that is done; None if it is not, or has no such value.

    Raises:
        UserError: a part of the metric cannot be read.
    """
    if " - " in metric:
        values = [measure(cell, part) for part in metric.split(" - ")]
        return None if None in values else values[0] - sum(values[1:])
    if "," in metric:
        values = [measure(cell, part) for part in parts(metric)]
        return None if None in values else fmean(values)
    name, at, window = metric.partition("@")
    if at:
        points = curve(cell, name)
        return _within(points, window, cell.identity["training"]["steps"], metric) if points else None
    if ":" in name:
        return evaluated(cell, name)
    return _plain(cell, name)


def parts(metric: str) -> list[str]:
    """The metrics whose mean a metric is."""
    return [part.strip() for part in metric.split(",")]


def is_evaluation(metric: str) -> bool:
    """Whether the metric is from evaluations, which a finished run may still lack."""
    return ":" in metric and "@" not in metric


def metric_name(metric: str) -> str:
    """A metric as people read it, and as published numbers are called: of a suite's task, the task."""
    return metric.partition(":")[2].removesuffix("%") if is_evaluation(metric) else metric


def evaluated(cell: Cell, name: str) -> float | None:
    """The score of ``suite:task``, times 100 with a % behind it; None if the run was not evaluated on it."""
    suite, _, task = name.partition(":")
    found = read_evaluation(cell.record, suite, task.removesuffix("%")) if cell.record else None
    if found is None:
        return None
    value = found["metrics"][found["metric"]]["value"]
    return 100 * value if task.endswith("%") else value


def curve(cell: Cell, name: str) -> Curve:
    """A curve of a run, whatever its state; [] without a record or without such lines.

    Raises:
        UserError: no curve has this name.
    """
    base, colon, tensors = name.partition(":")
    if base not in CURVES or (colon and base not in TELEMETRY):
        raise UserError(f"{name}: no such curve; there are {', '.join(CURVES)}, of telemetry also NAME:tensor")
    if cell.record is None:
        return []
    path = cell.record.metrics_file
    if colon:
        return _tensor_curve(path, _version(path), base, tensors)
    points = _scalars(path, _version(path)).get(base, [])
    if base != "grad_rms":
        return points
    count = (cell.summary or {}).get("parameters")
    return [(step, value / math.sqrt(count)) for step, value in points] if count else []


def _plain(cell: Cell, name: str) -> Any:
    if cell.summary is None:
        return None
    for place in (cell.summary, cell.identity["model"], cell.identity["training"]):
        if name in place:
            return place[name]
    return None


def _within(points: Curve, window: str, steps: int, metric: str) -> float | None:
    low, dash, high = window.partition("-")
    try:
        first, last = float(low), float(high or low)
    except ValueError as error:
        raise UserError(f"{metric}: cannot be read; a window is a fraction (@0.5) or two (@0.6-1)") from error
    if not dash:
        return min(points, key=lambda point: abs(point[0] - first * steps))[1]
    inside = [value for step, value in points if first * steps <= step <= last * steps]
    return fmean(inside) if inside else None


def _version(path: Path) -> tuple[int, int]:
    """What changes when the file does: a run that is going on must not be read from memory."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=20_000)
def _scalars(path: Path, version: tuple[int, int]) -> dict[str, Curve]:
    """Every curve of a metrics file but those of single tensors."""
    found: dict[str, Curve] = {}

    def add(name: str, line: dict[str, Any], value: Any) -> None:
        if value is not None:
            found.setdefault(name, []).append((line["step"], value))

    for line in read_metrics(path):
        for name, (kind, key) in LINES.items():
            if line["kind"] == kind:
                add(name, line, line.get(key))
        if line["kind"] == "train":
            add("grad_rms", line, line.get("grad_norm"))
        if line["kind"] == "telemetry":
            for name in TELEMETRY:
                add(name, line, line["overall"].get(name))
    return found


@lru_cache(maxsize=1_000)
def _tensor_curve(path: Path, version: tuple[int, int], field: str, pattern: str) -> Curve:
    points = []
    for line in read_metrics(path, "telemetry"):
        tensors = line.get("tensors", {})
        values = [one[field] for name, one in tensors.items() if fnmatchcase(name, pattern)]
        if values and all(value is not None for value in values):
            points.append((line["step"], _geometric(values)))
    return points


def _geometric(values: list[float]) -> float:
    return math.exp(fmean(map(math.log, values))) if min(values) > 0 else 0.0
