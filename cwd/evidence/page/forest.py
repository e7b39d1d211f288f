"""Small forest plots: measured mean and interval beside the published effect and the bound, in pixels of an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cwd.evidence.claims import Finding

WIDTH = 180.0
MARGIN = 6.0  # so that nothing is cut off at the ends


@dataclass(frozen=True)
class Axis:
    """Shared by all comparisons of a claim: what lies at its ends, and where the claim's bounds are, in pixels."""

    low: float
    high: float
    bounds: tuple[float, ...]


@dataclass(frozen=True)
class Mark:
    """One comparison on its axis, in pixels; None for what there is not."""

    mean: float | None
    low: float | None
    high: float | None
    published: float | None


def axis_of(findings: Sequence[Finding]) -> Axis | None:
    """The axis that holds every mean, interval, published effect and bound; None where nothing was measured."""
    measured = [one for one in findings if one.estimate is not None and one.verdict != "smoke"]
    if not measured:
        return None
    estimates = [one.estimate for one in measured if one.estimate]
    numbers = [value for one in estimates for value in (one.mean, one.low, one.high) if value is not None]
    numbers += [one.published for one in findings if one.published is not None]
    numbers += measured[0].claim.bound
    low, high = min(numbers), max(numbers)
    if low == high:
        low, high = low - 1, high + 1
    empty = Axis(low, high, ())
    return Axis(low, high, tuple(place(empty, bound) for bound in measured[0].claim.bound))


def mark_of(one: Finding, axis: Axis) -> Mark:
    """Where the comparison lies on the axis."""
    found = one.estimate if one.verdict != "smoke" else None
    ends = (found.mean, found.low, found.high) if found else (None, None, None)
    mean, low, high, published = (None if value is None else place(axis, value) for value in (*ends, one.published))
    return Mark(mean, low, high, published)


def place(axis: Axis, value: float) -> float:
    """Pixels from the left, to a tenth."""
    return round(MARGIN + (value - axis.low) / (axis.high - axis.low) * (WIDTH - 2 * MARGIN), 1)
