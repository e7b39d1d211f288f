"""From runs to verdicts: each claim's comparisons, the per-seed quantities behind them, and what they say.

A verdict is computed, never typed:

supported     the mean lies surely (p < 0.05 after Holm's correction over all comparisons of the table) where the claim
              says
contradicted  it surely does not
unresolved    neither, or runs diverged, or a best lambda lies at the edge of its grid, where a wider one may say
              otherwise
incomplete    seeds are missing: to look at each new seed and stop when one likes the verdict would be no 5% test
smoke         smoke runs are never evidence
not run       something must exist first

A claim with several comparisons says that each of them holds: it is contradicted if one is, and supported if all are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from cwd.errors import UserError
from cwd.evidence.artifact_files import Artifact, Claim
from cwd.evidence.artifacts import AXES, Point
from cwd.evidence.grid import Cell, check_paired
from cwd.evidence.items import check_same_items
from cwd.evidence.lambdas import best_lambda
from cwd.evidence.listing import flatten
from cwd.evidence.measures import is_evaluation, measure, metric_name, parts
from cwd.evidence.published import look_up
from cwd.evidence.statistics import LEVEL, Estimate, estimate, holm, region_test, seeds_needed, verdicts
from cwd.evidence.trials import PATHS

ORDER = ("contradicted", "unresolved", "incomplete", "not run", "smoke", "supported")


@dataclass(frozen=True)
class Finding:
    """One comparison of a claim and what came out.

    ``values`` are the claim's per-seed quantity, ``runs`` the keys behind each. ``p`` is Holm's adjusted p-value,
    ``seeds_needed`` the seeds that would resolve the published effect at the spread measured here. ``measured`` is the
    value of a theory check, which has no seeds. ``edges`` has for each side the arm whose own best lies at the edge of
    what was tried, or nothing.
    """

    claim: Claim
    coordinates: dict[str, Any]
    planned: int = 0
    values: dict[int, float] = field(default_factory=dict)
    runs: dict[int, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    published: float | None = None
    estimate: Estimate | None = None
    p: float | None = None
    verdict: str = "incomplete"
    seeds_needed: int | None = None
    measured: Any = None
    edges: tuple[str, ...] = ()

    @property
    def effect_in_sd(self) -> float | None:
        """The mean over the standard deviation of the per-seed quantity (Cohen's d of paired samples)."""
        found = self.estimate
        return found.mean / found.sd if found and found.sd else None


def judge(artifact: Artifact, points: Sequence[Point], smoke: bool) -> list[Finding]:
    """A finding for each comparison of each statistical claim of the artifact.

    Raises:
        UserError: two arms that are no pair, or a comparison that would mix runs of several settings.
    """
    found = [one for claim in artifact.claims if claim.test != "check" for one in _compare(claim, artifact, points)]
    tested = [i for i, one in enumerate(found) if one.verdict == "ready" and not smoke]
    tests = [region_test(list(found[i].values.values()), found[i].claim.expect, found[i].claim.bound) for i in tested]
    judged = [_estimated(one, smoke, len(found)) for one in found]
    adjusted, decided = holm([test.p for test in tests], len(found)), verdicts(tests, len(found))
    for i, p, verdict in zip(tested, adjusted, decided, strict=True):
        judged[i] = _unless_at_edge(dataclasses.replace(judged[i], p=p, verdict=verdict))
    return judged


def _unless_at_edge(one: Finding) -> Finding:
    """The finding, unresolved where an arm's own best lies at the edge of what was tried and could turn the verdict. A
    wider grid can only lower that arm's loss, so it leaves alone what says that the arm's loss is lower.
    """
    if one.verdict == "unresolved" or not any(one.edges):
        return one
    names = set(filter(None, one.edges))
    if one.claim.metric == "loss" and one.claim.expect != "within" and len(one.edges) == 2:
        a_is_lower = (one.verdict == "supported") == (one.claim.expect == "below")
        names = {one.edges[1 if a_is_lower else 0]} - {""}
    notes = tuple(f"own best of {name} at the edge of its grid, widen it" for name in sorted(names))
    return dataclasses.replace(one, verdict="unresolved", notes=(*one.notes, *notes)) if notes else one


def overall(findings: Iterable[Finding]) -> str:
    """The verdict of a claim, from those of its comparisons: the first of ORDER that any of them has."""
    return min((one.verdict for one in findings), key=ORDER.index)


def _estimated(finding: Finding, smoke: bool, family: int) -> Finding:
    """The finding with its interval, and a verdict where no test is needed for it."""
    verdict = "smoke" if smoke and finding.verdict not in ("incomplete", "not run") else finding.verdict
    if not finding.values:
        return dataclasses.replace(finding, verdict=verdict)
    values = estimate(list(finding.values.values()))
    needed = None
    if finding.published is not None and values.sd is not None and values.n >= 3 and not smoke:
        needed = seeds_needed(effect_of(finding.published, finding.claim), values.sd, LEVEL / family)
    return dataclasses.replace(finding, verdict=verdict, estimate=values, seeds_needed=needed)


def effect_of(published: float, claim: Claim) -> float:
    """A published effect, counted from the nearest bound that the claim is judged by."""
    return min((published - bound for bound in claim.bound), key=abs)


def _compare(claim: Claim, artifact: Artifact, points: Sequence[Point]) -> list[Finding]:
    """The claim's comparisons in the order of the grid, with their per-seed values and not yet judged."""
    inside = [point for point in points if point.matches(claim.where)]
    groups: dict[tuple[Any, ...], tuple[list[Point], list[Point]]] = {}
    for point in inside:
        for side, where in enumerate((claim.a, claim.b)):
            if where and point.matches(where):
                label = tuple(point.coordinates.get(name) for name in claim.each)
                groups.setdefault(label, ([], []))[side].append(point)
    if not groups:
        raise UserError(f"{artifact.name}: claim {claim.id}: no run of the grid is what it compares")
    return [
        _finding(claim, artifact, dict(zip(claim.each, label, strict=True)), *sides) for label, sides in groups.items()
    ]


def _finding(claim: Claim, artifact: Artifact, where: dict[str, Any], a: list[Point], b: list[Point]) -> Finding:
    quantity = QUANTITIES[claim.test]
    pairs = _matched(claim, artifact, a, b)
    start = Finding(claim, where, len(a[0].seeds), published=_published(claim, artifact, pairs), edges=_edges(pairs))
    waiting = next((point.needs for pair in pairs for point in pair if point.needs), None)
    if waiting:
        return dataclasses.replace(start, verdict="not run", notes=(f"needs {waiting}",))
    values, keys, notes = {}, {}, []
    for seed in a[0].seeds:
        cells = [[point.cells[seed] for point in pair] for pair in pairs]
        value, note = quantity(claim, cells)
        if value is not None:
            values[seed] = value
            keys[seed] = tuple(cell.record.key for pair in cells for cell in pair if cell.record)
        if note:
            notes.append(f"seed {seed}: {note}")
    verdict = "unresolved" if notes else "ready" if len(values) == start.planned else "incomplete"
    return dataclasses.replace(start, values=values, runs=keys, notes=tuple(notes), verdict=verdict)


def _edges(pairs: list[tuple[Point, ...]]) -> tuple[str, ...]:
    """For each side the arm whose own best lies at the edge of what was tried; empty if none does."""
    sides = zip(*pairs, strict=True)
    return tuple(next((str(point.coordinates["arm"]) for point in side if point.at_edge), "") for side in sides)


def _matched(claim: Claim, artifact: Artifact, a: list[Point], b: list[Point]) -> list[tuple[Point, ...]]:
    """The points that are compared with each other: one pair, or one for each step of the claim's axes."""
    axes = {"slope": ("size",), "minimiser": ("lambda",)}.get(claim.test, claim.over)
    sides = [{tuple(map(point.coordinates.get, axes)): point for point in side} for side in (a, b) if side]
    labels = list(sides[0])
    name = f"{artifact.name}: claim {claim.id}"
    several = any(len(by) != len(side) for by, side in zip(sides, (a, b), strict=False))
    if several or any(list(by) != labels for by in sides) or len(sides) != (2 if claim.b else 1):
        raise UserError(f"{name}: each comparison needs one configuration of either arm, not {len(a)} against {len(b)}")
    pairs = [tuple(by[label] for by in sides) for label in labels]
    for pair in pairs:
        _check_comparable(pair, claim, name)
    return pairs


def _check_comparable(pair: tuple[Point, ...], claim: Claim, name: str) -> None:
    """Refuses two arms that differ in more than what the claim compares."""
    if len(pair) < 2 or pair[0].config is None or pair[1].config is None:
        return
    allowed = {AXES[axis] for axis in (*claim.a, *claim.b) if axis in AXES}
    choices = {point.coordinates["choice"] for point in pair}
    if "own" in choices or "none" in (claim.a.get("arm"), claim.b.get("arm")):
        allowed |= {"decay.weight_decay", "decay.mode"}  # an arm whose own best lambda is 0 is no decay at all
    allowed |= {".".join(PATHS[axis]) for point in pair for axis in point.trial}  # of a search, each arm's own
    if "spd" in (claim.a.get("arm"), claim.b.get("arm")):
        allowed |= {"decay.weight_decay"}  # its lambda is another quantity: a share of the way back
    left, right = (dict(flatten(point.on(0))) for point in pair)
    differ = {key for key in {*left, *right} if left.get(key) != right.get(key)} - allowed
    if {"schedule.name"} & allowed:
        differ = {key for key in differ if not key.startswith("schedule.")}
    if differ:
        raise UserError(f"{name}: one comparison cannot mix runs of several settings ({', '.join(sorted(differ))})")


def _difference(claim: Claim, cells: list[list[Cell]]) -> tuple[float | None, str]:
    (a, b), *_ = cells
    return _paired(claim, a, b)


def _paired(claim: Claim, a: Cell, b: Cell) -> tuple[float | None, str]:
    """The metric's difference between two runs; None and why, if one diverged."""
    gone = [cell for cell in (a, b) if cell.state == "diverged"]
    if gone:
        return None, "diverged: " + ", ".join(cell.identity["decay"]["mode"] for cell in gone)
    if not (a.summary and b.summary):
        return None, ""
    check_paired(a, b)
    x, y = measure(a, claim.metric), measure(b, claim.metric)
    if x is None or y is None:
        return None, "" if is_evaluation(claim.metric) else f"no {claim.metric} in the record"
    check_same_items(a, b, claim.metric)
    return (math.log(x / y), "") if claim.test == "log_ratio" else (x - y, "")


def _value(claim: Claim, cells: list[list[Cell]]) -> tuple[float | None, str]:
    (cell,) = cells[0]
    if cell.state == "diverged":
        return None, "diverged"
    found = measure(cell, claim.metric)
    return found, "" if found is not None or not cell.summary else f"no {claim.metric} in the record"


def _average(claim: Claim, cells: list[list[Cell]]) -> tuple[float | None, str]:
    found = [_paired(claim, a, b) for a, b in cells]
    values = [value for value, _ in found if value is not None]
    note = next((note for _, note in found if note), "")
    return (fmean(values) if len(values) == len(found) else None), note


def _slope(claim: Claim, cells: list[list[Cell]]) -> tuple[float | None, str]:
    """The least-squares slope of the difference against log2 of the parameters."""
    x, y = [], []
    for a, b in cells:
        difference, note = _paired(claim, a, b)
        if difference is None or a.summary is None:
            return None, note
        x.append(math.log2(a.summary["parameters"]))
        y.append(difference)
    return slope(x, y), ""


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through the points."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((one - mean_x) * (two - mean_y) for one, two in zip(x, y, strict=True))
    return products / sum((one - mean_x) ** 2 for one in x)


def _minimiser(claim: Claim, cells: list[list[Cell]]) -> tuple[float | None, str]:
    """log2 of the ratio of the two arms' best lambdas."""
    found = []
    for side in (0, 1):
        column = [pair[side] for pair in cells]
        if any(cell.state not in ("done", "diverged") for cell in column):
            return None, ""
        losses = {cell.identity["decay"]["weight_decay"]: measure(cell, claim.metric) for cell in column}
        best, at_edge = best_lambda({one: math.inf if loss is None else loss for one, loss in losses.items()})
        found.append((best, at_edge, column[0].identity["decay"]["mode"]))
    edges = [f"{arm} at {best:g}" for best, at_edge, arm in found if at_edge]
    note = f"best lambda at the edge of the grid: {', '.join(edges)}" if edges else ""
    return math.log2(found[0][0] / found[1][0]), note


QUANTITIES: dict[str, Callable[[Claim, list[list[Cell]]], tuple[float | None, str]]] = {
    "difference": _difference,
    "log_ratio": _difference,
    "value": _value,
    "average": _average,
    "slope": _slope,
    "minimiser": _minimiser,
}


def _published(claim: Claim, artifact: Artifact, pairs: list[tuple[Point, ...]]) -> float | None:
    """The same quantity, of the paper's numbers."""
    if claim.published is None or claim.test not in ("difference", "average", "slope"):
        return None
    rows = [[_printed(claim, artifact, point.coordinates) for point in pair] for pair in pairs]
    known = [(pair[0], a - b) for pair, (a, b) in zip(pairs, rows, strict=True) if a is not None and b is not None]
    if claim.test != "slope":
        return fmean(gap for _, gap in known) if known else None
    sizes = {"111m": 110.55, "338m": 338.44, "986m": 985.89, "2b": 2321.38}
    if len(known) < 2:
        return None
    return slope([math.log2(sizes[point.coordinates["size"]]) for point, _ in known], [gap for _, gap in known])


def _printed(claim: Claim, artifact: Artifact, coordinates: Mapping[str, Any]) -> float | None:
    assert claim.published is not None
    found = [
        look_up(claim.published, {**coordinates, "metric": name}, artifact.aliases)
        for name in claim.printed or map(metric_name, parts(claim.metric))
    ]
    return None if None in found else sum(found) / len(found)
