"""What the seeds can resolve: the spread that runs have shown so far, against the effect that the paper published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cwd.evidence.claims import Finding, effect_of
from cwd.evidence.statistics import LEVEL, detectable_effect, seeds_needed
from cwd.evidence.study import State


@dataclass(frozen=True)
class Spread:
    """The standard deviation over seeds of a claim's quantity, from `pairs` values at `scale`, on `runs`: the same
    comparison, or all comparisons of the claim together.
    """

    sd: float
    pairs: int
    scale: str
    pooled: bool


@dataclass(frozen=True)
class Strength:
    """What a comparison's seeds can show.

    Attributes:
        finding: the comparison.
        effect: the published one, from the nearest bound that the claim is judged by.
        spread: None if no runs show one.
        needed: seeds that would find `effect`; None if more than statistics.MOST_SEEDS, or if it is not known.
        detectable: the least effect that the planned seeds find.
    """

    finding: Finding
    effect: float
    spread: Spread | None
    needed: int | None
    detectable: float | None


def strengths(state: State, others: Sequence[State], seeds: int) -> list[Strength]:
    """One for each comparison that the paper has a number for.

    Args:
        state: the artifact at the planned scale.
        others: the same artifact at other scales that count, whose runs may show a spread.
        seeds: that are planned.
    """
    statistical = [one for one in state.findings if one.claim.test != "check"]
    level = LEVEL / max(1, len(statistical))
    found = []
    for one in statistical:
        if one.published is None:
            continue
        effect = effect_of(one.published, one.claim)
        spread = spread_of(one, [state, *others])
        needed = seeds_needed(effect, spread.sd, level) if spread else None
        least = detectable_effect(spread.sd, seeds, level) if spread and seeds > 1 else None
        found.append(Strength(one, effect, spread, needed, least))
    return found


def hardest(found: Iterable[Strength]) -> list[Strength]:
    """Of each claim, the comparison whose published effect is the smallest for its spread."""
    worst: dict[str, Strength] = {}
    for one in found:
        before = worst.get(one.finding.claim.id)
        if before is None or _ratio(one) < _ratio(before):
            worst[one.finding.claim.id] = one
    return list(worst.values())


def spread_of(finding: Finding, states: Sequence[State]) -> Spread | None:
    """The spread of the same comparison, or of all comparisons of its claim, at the first scale that has pairs."""
    for state in states:
        if state.scale == "smoke":
            continue
        same = [one for one in state.findings if one.claim.id == finding.claim.id and len(one.values) > 1]
        own = [one for one in same if _alike(one.coordinates, finding.coordinates)]
        if chosen := own or same:
            return Spread(pooled_sd(chosen), sum(len(one.values) for one in chosen), state.scale, not own)
    return None


def pooled_sd(findings: Sequence[Finding]) -> float:
    """Of several comparisons: the root of their variances' mean, by degrees of freedom."""
    degrees = squares = 0.0
    for one in findings:
        assert one.estimate is not None
        assert one.estimate.sd is not None
        degrees += one.estimate.n - 1
        squares += (one.estimate.n - 1) * one.estimate.sd**2
    return math.sqrt(squares / degrees)


def _alike(a: Mapping[str, object], b: Mapping[str, object]) -> bool:
    """The same coordinates; lambdas and rates differ between scales."""
    return all(b.get(name) == value for name, value in a.items() if name not in ("lambda", "lr"))


def _ratio(one: Strength) -> float:
    return abs(one.effect) / one.spread.sd if one.spread and one.spread.sd else abs(one.effect)
