"""Figures of an artifact: means over seeds, with an interval that shows how far paired runs scatter, and at the paper's
scale what it printed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev
from typing import Any

from cwd.evidence.artifact_files import Artifact, Layout
from cwd.evidence.artifacts import Point
from cwd.evidence.document import PAPER, Figure, Panel, Series
from cwd.evidence.measures import curve
from cwd.evidence.published import look_up
from cwd.evidence.study import State
from cwd.evidence.tables import name_of, stand_in, values_of

Dots = dict[float, dict[int, float]]  # x -> seed -> value
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
    panels = [panel for metric in layout.metrics for panel in _panels(state.artifact, points, metric, state.scale)]
    across = next((len(_values(points, axis)) for axis in reversed(layout.panels)), len(panels))
    columns = min(3, across) if across < 6 or across % 6 == 0 else 4
    return Figure(state.artifact.title, tuple(panels), columns, _caption(layout, points))


def _caption(layout: Layout, points: Sequence[Point]) -> str:
    """What lines and intervals are, over how many seeds, and how the axes differ from the paper's."""
    counts = sorted({len(point.done()) for point in points if point.done()})
    if not counts:
        return ""
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    what = "Bands" if layout.x == "step" else "Bars"
    interval = (
        f"{what}: one standard deviation over seeds, each seed's mean over the lines taken out, as arms are paired."
    )
    notes = {
        "lambda": " λ: logarithmic from the first point above zero on; the paper's axis is linear.",
        "size": " Parameters: of the models that were trained.",
    }
    words = f"Mean of {seeds} seeds. {interval}" if counts[-1] > 1 else "One seed: no interval."
    return words + notes.get(layout.x, "")


def _panels(artifact: Artifact, points: Sequence[Point], metric: str, scale: str) -> Iterator[Panel]:
    layout = artifact.layout
    axes = [_values(points, axis) for axis in layout.panels]
    for choice in itertools.product(*axes):
        where = dict(zip(layout.panels, choice, strict=True))
        mine = [point for point in points if all(point.coordinates.get(axis) == value for axis, value in where.items())]
        names = [
            name_of(value) + (stand_in(mine) if axis == "size" and scale != "paper" else "")
            for axis, value in where.items()
        ]
        for window in layout.windows if layout.x == "step" else (1.0,):
            title = ", ".join(
                [*names, *([] if len(layout.windows) == 1 else ["the beginning" if window < 1 else "the whole run"])]
            )
            series = _lines(layout, mine, metric, window)
            if scale == "paper" and layout.published and window == 1:
                series += _printed(artifact, mine)
            yield Panel(title, _x_label(layout.x), _y_label(metric), tuple(series), _x_scale(layout.x), layout.y)


def _printed(artifact: Artifact, points: Sequence[Point]) -> list[Series]:
    """What the paper printed for these runs: its final loss, at their number of parameters or at their last step."""
    layout = artifact.layout
    lines: dict[str, dict[float, float]] = {}
    for point in points:
        value = look_up(str(layout.published), point.coordinates, artifact.aliases)
        done = next(iter(point.done().values()), None)
        if isinstance(value, float) and done and done.summary:
            x = done.identity["training"]["steps"] if layout.x == "step" else done.summary["parameters"]
            label = " ".join(name_of(point.coordinates.get(axis)) for axis in layout.lines)
            lines.setdefault(f"{PAPER} {label}", {})[float(x)] = value
    return [Series(label, tuple(sorted(dots)), tuple(dots[x] for x in sorted(dots))) for label, dots in lines.items()]


def _lines(layout: Layout, points: Sequence[Point], metric: str, window: float) -> list[Series]:
    lines: dict[str, Dots] = {}
    for choice in itertools.product(*(_values(points, axis) for axis in layout.lines)):
        where = dict(zip(layout.lines, choice, strict=True))
        if layout.x == "lambda" and where.get("arm") == "none":
            continue  # lambda = 0: a point on the other lines
        dots: Dots = {}
        for point in points:
            if all(_on_line(point, axis, value, layout.x) for axis, value in where.items()):
                for x, seed, value in _dots(layout, point, metric, window):
                    dots.setdefault(x, {})[seed] = value
        if dots:
            lines[" ".join(map(name_of, choice))] = dots
    return [_series(label, dots, list(lines.values())) for label, dots in lines.items()]


def _on_line(point: Point, axis: str, value: Any, x: str) -> bool:
    no_decay = x == "lambda" and axis == "arm" and point.coordinates.get("multiple") == 0
    return no_decay or point.coordinates.get(axis) == value


def _dots(layout: Layout, point: Point, metric: str, window: float) -> Iterator[tuple[float, int, float]]:
    """(x, seed, value) of a point's runs that are done."""
    if layout.x != "step":
        for seed, value in values_of(point, metric).items():
            summary = point.cells[seed].summary or {}
            yield float(point.coordinates["lambda"] if layout.x == "lambda" else summary["parameters"]), seed, value
        return
    for seed, cell in point.done().items():
        steps = cell.identity["training"]["steps"]
        for step, value in curve(cell, metric):
            if layout.start * steps <= step <= window * steps:
                yield float(step), seed, value


def _series(label: str, dots: Dots, lines: Sequence[Dots]) -> Series:
    xs = sorted(dots)
    means = [fmean(dots[x].values()) for x in xs]
    if all(len(dots[x]) < 2 for x in xs):  # one seed says nothing of how far it scatters
        return Series(label, tuple(xs), tuple(means))
    spreads = [_spread(dots, lines, x) for x in xs]
    low, high = (tuple(m + sign * s for m, s in zip(means, spreads, strict=True)) for sign in (-1, 1))
    return Series(label, tuple(xs), tuple(means), low, high)


def _spread(dots: Dots, lines: Sequence[Dots], x: float) -> float:
    """The standard deviation over seeds, after each seed's mean over the lines is taken out where they share seeds: the
    arms are paired, and how much the seeds themselves differ is beside the point (Cousineau 2005; Morey 2008).
    """
    others = [line[x] for line in lines if x in line and line[x].keys() == dots[x].keys()]
    count = len(others)
    if len(dots[x]) < 2:
        return 0.0
    if count < 2:
        return stdev(dots[x].values())
    centred = [value - fmean(line[seed] for line in others) for seed, value in dots[x].items()]
    return stdev(centred) * math.sqrt(count / (count - 1))


def _values(points: Sequence[Point], axis: str) -> list[Any]:
    return list(dict.fromkeys(point.coordinates.get(axis) for point in points))


def _x_label(x: str) -> str:
    return {"step": "step", "lambda": "lambda", "size": "parameters"}[x]


def _x_scale(x: str) -> str:
    return {"step": "linear", "lambda": "symlog", "size": "log"}[x]


def _y_label(metric: str) -> str:
    base, colon, tensor = metric.partition(":")
    return tensor.removesuffix(".weight") if colon else LABELS.get(base, base)
