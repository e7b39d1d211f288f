"""Figures of an artifact: means over seeds, with a band of one standard deviation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from cwd.evidence.artifact_files import Layout
from cwd.evidence.artifacts import Point
from cwd.evidence.document import Figure, Panel, Series
from cwd.evidence.measures import curve
from cwd.evidence.study import State
from cwd.evidence.tables import name_of, stand_in, values_of

Dots = dict[float, list[float]]  # x -> a value for each seed
LABELS = {
    "loss": "final validation loss (nats)",
    "eval_loss": "evaluation loss (nats)",
    "train_loss": "training loss (nats)",
    "grad_rms": "RMS of the gradient",
    "strict_ratio": "mask ratio",
    "rms_x": "RMS of the parameters",
}


def build_figure(state: State) -> Figure:
    """The artifact's figure, from the runs that are done."""
    layout = state.artifact.layout
    points = [point for point in state.points if point.matches(layout.where)]
    panels = [panel for metric in layout.metrics for panel in _panels(layout, points, metric, state.scale)]
    across = next((len(_values(points, axis)) for axis in reversed(layout.panels)), len(panels))
    return Figure(state.artifact.title, tuple(panels), min(3, across) if across < 6 else 4)


def _panels(layout: Layout, points: Sequence[Point], metric: str, scale: str) -> Iterator[Panel]:
    axes = [_values(points, axis) for axis in layout.panels]
    for choice in itertools.product(*axes):
        where = dict(zip(layout.panels, choice, strict=True))
        mine = [point for point in points if all(point.coordinates.get(axis) == value for axis, value in where.items())]
        names = [
            name_of(value) + (stand_in(mine) if axis == "size" and scale != "paper" else "")
            for axis, value in where.items()
        ]
        for window in layout.windows if layout.x == "step" else (1.0,):
            title = ", ".join([*names, *(["the beginning"] if window < 1 else [])])
            series = tuple(_lines(layout, mine, metric, window))
            yield Panel(title, _x_label(layout.x), _y_label(metric), series, _x_scale(layout.x))


def _lines(layout: Layout, points: Sequence[Point], metric: str, window: float) -> Iterator[Series]:
    for choice in itertools.product(*(_values(points, axis) for axis in layout.lines)):
        where = dict(zip(layout.lines, choice, strict=True))
        if layout.x == "lambda" and where.get("arm") == "none":
            continue  # lambda = 0: a point on the other lines
        dots: Dots = {}
        for point in points:
            if all(_on_line(point, axis, value, layout.x) for axis, value in where.items()):
                for x, value in _dots(layout, point, metric, window):
                    dots.setdefault(x, []).append(value)
        if dots:
            yield _series(" ".join(map(name_of, choice)), dots)


def _on_line(point: Point, axis: str, value: Any, x: str) -> bool:
    no_decay = x == "lambda" and axis == "arm" and point.coordinates.get("multiple") == 0
    return no_decay or point.coordinates.get(axis) == value


def _dots(layout: Layout, point: Point, metric: str, window: float) -> Iterator[tuple[float, float]]:
    if layout.x != "step":
        for seed, value in values_of(point, metric).items():
            at = point.coordinates["lambda"] if layout.x == "lambda" else point.cells[seed].summary["parameters"]  # type: ignore[index]
            yield float(at), value
        return
    for cell in point.done().values():
        steps = cell.identity["training"]["steps"]
        for step, value in curve(cell, metric):
            if layout.start * steps <= step <= window * steps:
                yield float(step), value


def _series(label: str, dots: Dots) -> Series:
    xs = sorted(dots)
    means = [fmean(dots[x]) for x in xs]
    spreads = [stdev(dots[x]) if len(dots[x]) > 1 else 0.0 for x in xs]
    low, high = (tuple(m + sign * s for m, s in zip(means, spreads, strict=True)) for sign in (-1, 1))
    return Series(label, tuple(xs), tuple(means), low, high)


def _values(points: Sequence[Point], axis: str) -> list[Any]:
    return list(dict.fromkeys(point.coordinates.get(axis) for point in points))


def _x_label(x: str) -> str:
    return {"step": "step", "lambda": "lambda", "size": "parameters"}[x]


def _x_scale(x: str) -> str:
    return {"step": "linear", "lambda": "symlog", "size": "log"}[x]


def _y_label(metric: str) -> str:
    base, colon, tensor = metric.partition(":")
    return tensor.removesuffix(".weight") if colon else LABELS.get(base, base)
