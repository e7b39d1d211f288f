"""The ledger's rows: each claim with its comparisons, in the numbers and words of the artifact's own tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cwd.evidence.artifact_files import Claim, text_of
from cwd.evidence.artifacts import Point
from cwd.evidence.claims import ORDER, Finding, overall
from cwd.evidence.page.forest import Axis, Mark, axis_of, mark_of
from cwd.evidence.study import State
from cwd.evidence.tables import checked_of, numbers_of, told_of, where_of

SIGNS = {  # a verdict is never told by its colour alone
    "supported": "✓",
    "contradicted": "✗",
    "unresolved": "?",
    "incomplete": "…",
    "not run": "○",
    "smoke": "~",
}
THEORY = "theory"  # instead of a scale: checks are the same at every one


@dataclass(frozen=True)
class Comparison:
    """One comparison of a claim, as shown."""

    where: str
    published: str
    measured: str
    interval: str
    verdict: str
    seeds: str
    needed: str
    p: str
    mark: Mark | None
    optimizers: tuple[str, ...]
    sizes: tuple[str, ...]
    sorts: dict[str, float]  # column -> what it is sorted by; a number that is not there comes last
    runs: dict[int, tuple[float | None, tuple[str, ...]]]  # seed -> the claim's quantity, the keys behind it
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One claim."""

    artifact: str  # its name
    anchor: str  # its section on the page
    scale: str
    claim: Claim
    verdict: str
    told: str
    axis: Axis | None
    comparisons: tuple[Comparison, ...]

    @property
    def expects(self) -> str:
        """ "below 0": where the mean, or a check's value, is expected."""
        return f"{self.claim.expect} {' and '.join(f'{bound:.7g}' for bound in self.claim.bound)}"


def entries(state: State, anchor: str) -> Iterator[Entry]:
    """A claim after the other, of one artifact."""
    for claim in state.artifact.claims:
        found = [one for one in state.findings if one.claim is claim]
        axis = axis_of(found)
        rows = tuple(_comparison(one, state, axis) for one in found)
        scale = THEORY if claim.test == "check" else state.scale
        yield Entry(state.artifact.name, anchor, scale, claim, overall(found), told_of(found), axis, rows)


def _comparison(one: Finding, state: State, axis: Axis | None) -> Comparison:
    if one.claim.test == "check":
        _, _, measured, _, verdict = checked_of(one)
        published = interval = seeds = needed = p = "-"
    else:
        seeds, measured, interval, _, _, published, p, verdict, needed = numbers_of(one)
    points = list(_points(one, state))
    shown = one.estimate if verdict != "smoke" else None
    return Comparison(
        where_of(one),
        published,
        measured,
        interval,
        verdict,
        seeds,
        needed,
        p,
        mark_of(one, axis) if axis else None,
        _names(points, "optimizer"),
        _names(points, "size"),
        _present(
            published=one.published,
            measured=shown.mean if shown else one.measured,
            verdict=ORDER.index(verdict),
            seeds=len(one.values),
            needed=None if needed == "-" else one.seeds_needed,
        ),
        {seed: (one.values.get(seed), keys) for seed, keys in sorted(one.runs.items())},
        one.notes,
    )


def _points(one: Finding, state: State) -> Iterator[Point]:
    """The points of the grid that a comparison is about."""
    claim = one.claim
    for point in state.points:
        inside = point.matches(claim.where) and any(point.matches(side) for side in (claim.a, claim.b) if side)
        if inside and all(point.coordinates.get(axis) == value for axis, value in one.coordinates.items()):
            yield point


def _names(points: Sequence[Point], axis: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text_of(point.coordinates[axis]) for point in points if axis in point.coordinates))


def _present(**values: Any) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
