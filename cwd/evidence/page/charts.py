"""What the page's charts draw: a document's figures, and each claim's differences seed by seed.

Figures are drawn, not read: their numbers have DIGITS significant digits, and a path in the plane as few of its points
as leave none of the others further than the panel's extent over FINE from the line. All other numbers are as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cwd.evidence.claims import Finding
from cwd.evidence.colours import ARM_COLOURS, OPTIMIZER_COLOURS, PAPER_COLOUR, Style, other_styles, style_of
from cwd.evidence.document import Figure, Panel
from cwd.evidence.tables import where_of

DIGITS = 6
FINE = 2000

Place = tuple[float, float]


def figure_data(figure: Figure) -> dict[str, Any]:
    """The panels that have lines, with the colours and dashes of the images."""
    panels = [_panel(panel) for panel in figure.panels if panel.series]
    return {"title": figure.title, "columns": min(figure.columns, len(panels)), "panels": panels}


def _panel(panel: Panel) -> dict[str, Any]:
    others = other_styles()
    lines = []
    for series in panel.series:
        style = style_of(series.label) or next(others)
        columns: dict[str, Sequence[float] | None] = {name: getattr(series, name) for name in ("x", "y", "low", "high")}
        if panel.kind == "path":
            kept = simplified(list(zip(series.x, series.y, strict=True)), _extent(panel) / FINE)
            columns["x"], columns["y"] = zip(*kept, strict=True)
        numbers: dict[str, Any] = {name: _short(found) for name, found in columns.items()}
        lines.append({"label": series.label, **numbers, **_drawn(style)})
    return {
        "title": panel.title,
        "x": panel.x_label,
        "y": panel.y_label,
        "scale": panel.x_scale,
        "kind": panel.kind,
        "lines": lines,
    }


def _extent(panel: Panel) -> float:
    """Of all its lines, along the axis where they reach further."""
    axes = [[value for series in panel.series for value in getattr(series, name)] for name in ("x", "y")]
    return max(max(values) - min(values) for values in axes)


def _short(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(f"{value:.{DIGITS}g}") for value in values]


def simplified(path: list[Place], tolerance: float) -> list[Place]:
    """The ends of a path, and of the points between them as few as leave no other further than `tolerance` from the
    line (Douglas and Peucker, 1973).
    """
    (x0, y0), (x1, y1) = path[0], path[-1]
    length = math.hypot(x1 - x0, y1 - y0)

    def off(point: Place) -> float:
        x, y = point[0] - x0, point[1] - y0
        along = (x * (x1 - x0) + y * (y1 - y0)) / length**2 if length else 0.0
        along = min(max(along, 0.0), 1.0)
        return math.hypot(x - along * (x1 - x0), y - along * (y1 - y0))

    distances = [off(point) for point in path]
    worst = distances.index(max(distances))
    if distances[worst] <= tolerance:
        return path if len(path) < 2 else [path[0], path[-1]]
    return [*simplified(path[: worst + 1], tolerance)[:-1], *simplified(path[worst:], tolerance)]


def _drawn(style: Style) -> dict[str, Any]:
    return {"colour": style.colour, "dash": [1.6 * length for length in style.dashes]}


def differences(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """A chart for each claim that was measured: its quantity on each seed, the mean with its interval, what the paper
    has, and the bound.
    """
    claims = dict.fromkeys(id(one.claim) for one in findings if one.values and one.verdict != "smoke")
    return [_claim([one for one in findings if id(one.claim) == claim]) for claim in claims]


def _claim(findings: Sequence[Finding]) -> dict[str, Any]:
    claim = findings[0].claim
    return {"claim": claim.id, "means": claim.means, "bounds": claim.bound, "rows": list(_rows(findings))}


def _rows(findings: Sequence[Finding]) -> Iterator[dict[str, Any]]:
    for one in findings:
        found = one.estimate
        if found is not None:
            yield {
                "where": where_of(one) or "all",
                "values": list(one.values.items()),
                "runs": [list(one.runs.get(seed, ())) for seed in one.values],
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "published": one.published,
                "verdict": one.verdict,
            }


def colours() -> dict[str, Any]:
    """Arm or optimizer -> how its lines are drawn; what the paper printed has a colour of its own."""
    styles = {name: style_of(name) for name in (*ARM_COLOURS, *OPTIMIZER_COLOURS)}
    return {
        "lines": {name: _drawn(style) for name, style in styles.items() if style},
        "paper": PAPER_COLOUR,
    }
