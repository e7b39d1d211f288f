"""A document's figure as an image, by matplotlib."""

from __future__ import annotations

import io
import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from cwd.evidence.colours import other_styles, style_of
from cwd.evidence.document import Document, Panel


def draw(document: Document, kind: str) -> bytes:
    """The document's figures on one page, as "png" or "pdf". The same document gives the same bytes."""
    figure = document.figures[0]
    panels = [panel for panel in figure.panels if panel.series]
    columns = min(figure.columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = max(5.0, 3.4 * columns + 0.4)
    canvas = Canvas(figsize=(width, 2.6 * rows + 0.9), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel)
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    canvas.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)), frameon=False
    )
    heading = [line for text in (figure.title, *document.marks) for line in textwrap.wrap(text, int(13 * width))]
    canvas.suptitle("\n".join(heading), fontsize=10, color="#B00000" if document.marks else "black")
    buffer = io.BytesIO()
    stamp = {"CreationDate": None} if kind == "pdf" else {"Software": None}
    canvas.savefig(buffer, format=kind, dpi=140, metadata=stamp)
    return buffer.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    others = other_styles()
    if panel.kind == "path":
        axes.set_aspect("equal", adjustable="datalim")
    for series in panel.series:
        colour = (style_of(series.label) or next(others)).colour
        marker = "o" if len(series.x) <= 12 else None
        if panel.kind == "path":
            axes.plot(series.x[-1], series.y[-1], marker="*", color="black", markersize=6, zorder=3)
            marker = None
        axes.plot(series.x, series.y, label=series.label, color=colour, linewidth=1.4, marker=marker, markersize=3)
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, linewidth=0)
    _scale(axes, panel)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.set_ylabel(panel.y_label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: Axes, panel: Panel) -> None:
    """The x axis; where it is not linear, with a tick at each point, as there are few."""
    ticks = sorted({x for series in panel.series for x in series.x})
    if panel.x_scale == "symlog":  # lambda, with zero: linear up to the smallest, then logarithmic
        axes.set_xscale("symlog", linthresh=min((x for x in ticks if x > 0), default=1.0), linscale=0.5)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    elif panel.x_scale == "log":
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick / 1e6:.2g}M" for tick in ticks])
    axes.minorticks_off()
