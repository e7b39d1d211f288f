"""A document's numbers as CSV: every value with the run that it comes from, and every point of a figure's lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from cwd.evidence.document import Document


def cells_csv(document: Document) -> str:
    """A line for each value of each cell: the cell's coordinates, the metric, the seed, the value unrounded, and the
    key of the run; "" without values.
    """
    cells = [cell for cell in document.data.get("cells", []) if cell["values"]]
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell["coordinates"]))
    rows = [
        [*(cell["coordinates"].get(axis) for axis in axes), metric, seed, value, cell["runs"].get(seed)]
        for cell in cells
        for metric, values in cell["values"].items()
        for seed, value in values.items()
    ]
    return _csv([*axes, "metric", "seed", "value", "run"], rows) if rows else ""


def lines_csv(document: Document) -> str:
    """A line for each point of the figures: panel, the names of both axes, the line, x, y, and its band; "" without."""
    rows = [
        [panel.title, panel.x_label, panel.y_label, line.label, x, line.y[i], *_band(line.low, line.high, i)]
        for figure in document.figures
        for panel in figure.panels
        for line in panel.series
        for i, x in enumerate(line.x)
    ]
    return _csv(["panel", "x_is", "y_is", "line", "x", "y", "low", "high"], rows) if rows else ""


def _band(low: Sequence[float] | None, high: Sequence[float] | None, i: int) -> tuple[Any, Any]:
    return (None, None) if low is None or high is None else (low[i], high[i])


def _csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()
