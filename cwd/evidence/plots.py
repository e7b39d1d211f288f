"""A document's figure as an image, by matplotlib: lines labelled where they end, intervals drawn, fonts embedded."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, NullLocator

from cwd.evidence.colours import PAPER_COLOUR, Style, other_styles, style_of
from cwd.evidence.document import PAPER, Document, Figure, Panel, Series

SETTINGS: dict[Any, Any] = {
    "pdf.fonttype": 42,  # TrueType, which journals ask for; the default, type 3, cannot be edited
    "ps.fonttype": 42,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
STAMPS = {"pdf": {"CreationDate": None}, "png": {"Software": None}}  # no dates: the same figure is the same file
NAMES = {"lambda": "λ"}  # axes as the paper writes them
ALARM = "#B00000"
LABEL = 7  # points
STEPS = [1, 2, 2.5, 5, 10]  # between ticks, times a power of ten
FEW = 12  # points of a line that are marked one by one
WIDTH, HEIGHT = 3.3, 2.3  # inches, of a panel


def draw(document: Document, kind: str) -> bytes:
    """The document's first figure, as "png" or "pdf". The same document gives the same bytes."""
    figure = document.figures[0]
    with rc_context(SETTINGS):
        canvas = canvas_of(figure, document.marks)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, dpi=200, metadata=STAMPS[kind])
    return buffer.getvalue()


def canvas_of(figure: Figure, marks: Sequence[str] = ()) -> Canvas:
    """The figure drawn and laid out; marks, what must not be overlooked, stand in red above it."""
    panels = [panel for panel in figure.panels if panel.series]
    columns = min(figure.columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = max(5.0, WIDTH * columns + 0.6)
    canvas = Canvas(figsize=(width, HEIGHT * rows + 0.9), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel)
    _name_axes(list(grid.flat), panels, columns)
    heading = [line for text in (figure.title, *marks) for line in textwrap.wrap(text, int(13 * width))]
    canvas.suptitle("\n".join(heading), fontsize=10, color=ALARM if marks else "black")
    if figure.caption:
        wrapped = "\n".join(textwrap.wrap(figure.caption, int(19 * width)))
        canvas.supxlabel(wrapped, fontsize=6.5, color="#444444")
    canvas.draw_without_rendering()  # lays it out: where labels fit depends on how high the axes are
    for i, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        if panel.kind == "curve" and (len(panels) <= 3 or i % columns == columns - 1 or i == len(panels) - 1):
            _label_ends(axes, panel)
    return canvas


def _draw(axes: Axes, panel: Panel) -> None:
    others = other_styles()
    for series in panel.series:
        style = _style(series) or next(others)
        if panel.kind == "path":
            _draw_path(axes, series, style)
        else:
            _draw_line(axes, series, style, panel.x_scale == "linear")
    if panel.kind == "path":
        axes.set_aspect("equal", adjustable="datalim")
    _scale(axes, panel)
    axes.set_title(panel.title, fontsize=8.5)
    axes.tick_params(labelsize=LABEL)
    axes.grid(alpha=0.25, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)


def _style(series: Series) -> Style | None:
    """An arm's or optimizer's own; what the paper printed has that of its arm, in grey."""
    found = style_of(series.label.removeprefix(PAPER).strip())
    if not series.label.startswith(PAPER):
        return found
    return Style(PAPER_COLOUR, (1.0, 1.5), found.marker if found else "o")


def _draw_line(axes: Axes, series: Series, style: Style, band: bool) -> None:
    """A line with its interval: a band around a curve, bars on points that stand for themselves."""
    marker = style.marker if len(series.x) <= FEW else None
    axes.plot(
        series.x,
        series.y,
        color=style.colour,
        linewidth=1.3,
        marker=marker,
        markersize=3.5,
        dashes=style.dashes or (None, None),
    )
    if series.low is None or series.high is None:
        return
    if band:
        axes.fill_between(series.x, series.low, series.high, color=style.colour, alpha=0.18, linewidth=0)
        return
    bars = [[y - low for y, low in zip(series.y, series.low, strict=True)]]
    bars += [[high - y for y, high in zip(series.y, series.high, strict=True)]]
    axes.errorbar(series.x, series.y, bars, fmt="none", ecolor=style.colour, elinewidth=0.9, capsize=2, capthick=0.9)


def _draw_path(axes: Axes, series: Series, style: Style) -> None:
    """A path in the plane: from a ring to a star."""
    axes.plot(series.x, series.y, color=style.colour, linewidth=1.1)
    axes.plot(series.x[0], series.y[0], marker="o", color=style.colour, markerfacecolor="white", markersize=4.5)
    axes.plot(series.x[-1], series.y[-1], marker="*", color="black", markersize=6, zorder=3)


def _scale(axes: Axes, panel: Panel) -> None:
    """The axes' scales; where x is not linear, with a tick at each point, as there are few."""
    ticks = sorted({x for series in panel.series for x in series.x})
    if panel.y_scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        axes.yaxis.get_offset_text().set_fontsize(LABEL)
    if panel.x_scale == "symlog":  # lambda, with zero: linear up to the smallest, then logarithmic
        axes.set_xscale("symlog", linthresh=min((x for x in ticks if x > 0), default=1.0), linscale=0.5)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    elif panel.x_scale == "log":
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick / 1e6:.2g}M" for tick in ticks])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.minorticks_off()


def _name_axes(grid: Sequence[Axes], panels: Sequence[Panel], columns: int) -> None:
    """Names every axis once: not again beside or above a panel that has the same."""
    for i, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        below, left = panels[i + columns : i + columns + 1], panels[i - 1 : i] if i % columns else []
        if not below or below[0].x_label != panel.x_label:
            axes.set_xlabel(NAMES.get(panel.x_label, panel.x_label))
        if not left or left[0].y_label != panel.y_label:
            axes.set_ylabel(panel.y_label)


def _label_ends(axes: Axes, panel: Panel) -> None:
    """Each line's name where it ends, in its colour; moved apart where ends lie closer than a line of text."""
    others = other_styles()
    named = [(series, _style(series) or next(others)) for series in panel.series]
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # points
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [float(to_axes.transform((series.x[-1], series.y[-1]))[1]) for series, _ in named]
    gap = 1.15 * LABEL / height
    places = spread(ends, gap, 0.7 * gap)
    last = max(series.x[-1] for series, _ in named)
    for (series, style), place in zip(named, places, strict=True):
        axes.annotate(
            series.label,
            (last, place),
            xycoords=axes.get_xaxis_transform(),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=style.colour,
            fontsize=LABEL,
            annotation_clip=False,
        )


def spread(places: Sequence[float], gap: float, lowest: float = -math.inf) -> list[float]:
    """The places, moved as little as makes any two at least `gap` apart, in the same order, and none below `lowest`."""
    order = sorted(range(len(places)), key=places.__getitem__)
    groups: list[list[int]] = []  # of neighbours that touch, each centred on the mean of its places
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _start(groups[-1], places, gap) < _end(groups[-2], places, gap) + gap - 1e-12:
            groups[-2:] = [groups[-2] + groups[-1]]
    found = [0.0] * len(places)
    for group in groups:
        for rank, i in enumerate(group):
            found[i] = max(_start(group, places, gap) + rank * gap, lowest)
            lowest = found[i] + gap
    return found


def _start(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return sum(places[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _end(group: Sequence[int], places: Sequence[float], gap: float) -> float:
    return _start(group, places, gap) + gap * (len(group) - 1)
