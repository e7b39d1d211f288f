"""What the page's charts draw: a document's figures as they are, and each claim's differences seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cwd.evidence.claims import Finding
from cwd.evidence.colours import ARM_COLOURS, OPTIMIZER_COLOURS, PAPER_COLOUR, Style, other_styles, style_of
from cwd.evidence.document import Figure, Panel
from cwd.evidence.tables import where_of


def figure_data(figure: Figure) -> dict[str, Any]:
    """The panels that have lines, with the colours and dashes of the images."""
    panels = [_panel(panel) for panel in figure.panels if panel.series]
    return {"title": figure.title, "columns": min(figure.columns, len(panels)), "panels": panels}


def _panel(panel: Panel) -> dict[str, Any]:
    others = other_styles()
    lines = []
    for series in panel.series:
        style = style_of(series.label) or next(others)
        line = {"label": series.label, "x": series.x, "y": series.y, "low": series.low, "high": series.high}
        lines.append({**line, **_drawn(style)})
    return {
        "title": panel.title,
        "x": panel.x_label,
        "y": panel.y_label,
        "scale": panel.x_scale,
        "kind": panel.kind,
        "lines": lines,
    }


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
