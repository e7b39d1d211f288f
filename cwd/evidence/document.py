"""What is rendered: one model of tables and figures behind the terminal, Markdown, LaTeX, JSON and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PAPER = "paper:"  # begins the label of a line that the paper printed
PUBLISHED = "  published"  # the name of a row with the paper's numbers
ROWS = 9  # of a curve, where a figure is shown as a table


@dataclass(frozen=True)
class Table:
    """Cells as text. ``text_columns`` are aligned to the left, the others, numbers, to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1

    def is_published(self, row: tuple[str, ...]) -> bool:
        """Whether it is what the paper printed for the row above it."""
        return row[: self.text_columns][-1:] == (PUBLISHED,)

    @property
    def has_published(self) -> bool:
        """Whether any of its rows is the paper's, so that rows belong together."""
        return any(map(self.is_published, self.rows))


@dataclass(frozen=True)
class Series:
    """A line: x, y, and the band around it, [low, high], or None for the band."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_scale: str = "linear"  # linear, log, symlog
    y_scale: str = "linear"  # linear, log
    kind: str = "curve"  # curve; path: in the plane, x and y on one scale, where each ends is what counts


@dataclass(frozen=True)
class Figure:
    """Panels, `columns` beside each other."""

    title: str
    panels: tuple[Panel, ...]
    columns: int = 3
    caption: str = ""  # below the image: what lines and intervals are, and over how many seeds


@dataclass(frozen=True)
class Document:
    """An artifact, or the ledger, ready to be rendered.

    ``marks`` say what must not be overlooked (SMOKE, INCOMPLETE); ``data`` is the same content, unrounded and with run
    keys, for JSON.
    """

    name: str
    title: str
    marks: tuple[str, ...] = ()
    parts: tuple[Table | Figure, ...] = ()
    remarks: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> list[Figure]:
        """Its figures that have something to show."""
        return [part for part in self.parts if isinstance(part, Figure) and any(p.series for p in part.panels)]


def as_tables(figure: Figure) -> list[Table]:
    """Each panel as a table of at most ROWS of its points, the first and the last among them."""
    return [_as_table(panel) for panel in figure.panels if panel.series]


def _as_table(panel: Panel) -> Table:
    title = f"{panel.title}: {panel.y_label}" if panel.title else panel.y_label
    if panel.kind == "path":
        ends = tuple((one.label, f"{one.x[-1]:.4f}", f"{one.y[-1]:.4f}") for one in panel.series)
        return Table(f"{panel.title}: where each path ends", ("path", panel.x_label, panel.y_label), ends, 1)
    xs = sorted({x for series in panel.series for x in series.x})
    if len(xs) > ROWS:
        xs = [xs[round(i * (len(xs) - 1) / (ROWS - 1))] for i in range(ROWS)]
    values = [dict(zip(series.x, series.y, strict=True)) for series in panel.series]
    rows = [(f"{x:g}", *(f"{one[x]:.4f}" if x in one else "-" for one in values)) for x in xs]
    return Table(title, (panel.x_label, *(series.label for series in panel.series)), tuple(rows), 0)
