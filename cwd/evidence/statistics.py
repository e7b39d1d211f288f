"""Paired statistics: two arms of one seed share initial weights and batches, so their difference is what is measured.

Everything here is about the mean of a few numbers, one for each seed: its intervals, how sure it lies where a claim
says (or surely does not), and how many seeds would show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.05  # of a table: the chance that any of its comparisons is called different when none is
POWER = 0.8
MINIMUM = 3  # seeds without which there is no verdict
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds with two 95% intervals: Student's t, and the bootstrap's percentiles.

    ``sd`` is the standard deviation over seeds. With fewer than two seeds all but the mean are None.
    """

    mean: float
    n: int
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """The mean of `values`, one for each seed, with its intervals.

    The bootstrap resamples seeds 9,999 times from a fixed generator, so it gives the same interval each time.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an estimate needs at least one value")
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(mean, n)
    import numpy as np
    from scipy.special import stdtrit

    sd = stdev(values)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * sd / math.sqrt(n)
    draws = np.random.default_rng(0).integers(0, n, (9999, n))
    means = np.asarray(values)[draws].mean(1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(mean, n, sd, mean - half, mean + half, float(low), float(high))


@dataclass(frozen=True)
class RegionTest:
    """One-sided p-values of Student's t: `inside` is small if the mean surely lies where it is expected, `outside` if
    it surely does not.
    """

    inside: float
    outside: float

    @property
    def p(self) -> float:
        """Two-sided: twice the smaller, at most 1."""
        return min(1.0, 2 * min(self.inside, self.outside))


def region_test(values: Sequence[float], expect: str, bound: Sequence[float]) -> RegionTest:
    """Tests whether the mean lies below a bound, above it, or within two.

    Within two bounds, `inside` is the larger p-value of the two one-sided tests (TOST, Schuirmann 1987), so that both
    must be significant, and `outside` the smaller of the opposite two. Values without any spread, or fewer than
    MINIMUM, test nothing: both p-values are 1.
    """
    n = len(values)
    if n < MINIMUM or stdev(values) == 0:
        return RegionTest(1.0, 1.0)
    from scipy.special import stdtr

    error = stdev(values) / math.sqrt(n)
    below = [float(stdtr(n - 1, (fmean(values) - one) / error)) for one in bound]  # p-value of "the mean is below it"
    above = [float(stdtr(n - 1, (one - fmean(values)) / error)) for one in bound]
    if expect == "below":
        return RegionTest(below[0], above[0])
    if expect == "above":
        return RegionTest(above[0], below[0])
    return RegionTest(max(above[0], below[1]), min(below[0], above[1]))


def holm(p_values: Sequence[float], size: int | None = None) -> list[float]:
    """Holm's (1979) adjusted p-values, in the given order: the family of a table keeps its error below LEVEL.

    Args:
        size: comparisons in the family, if some have no p-value yet; they count as 1.
    """
    m = max(len(p_values), size or 0)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def verdicts(tests: Sequence[RegionTest], size: int | None = None) -> list[str]:
    """ "supported", "contradicted" or "unresolved" for each comparison of one table, after Holm's correction."""
    adjusted = holm([test.p for test in tests], size)
    return [
        "unresolved" if p > LEVEL else "supported" if test.inside < test.outside else "contradicted"
        for test, p in zip(tests, adjusted, strict=True)
    ]


def power(effect: float, sd: float, n: int, level: float = LEVEL) -> float:
    """The chance that a two-sided t test of n pairs at `level` finds a mean of `effect` on its right side.

    P(T > t_crit) with T noncentral t, n - 1 degrees of freedom, noncentrality effect * sqrt(n) / sd.
    """
    from scipy.special import nctdtr, stdtrit

    shift = abs(effect) * math.sqrt(n) / sd
    threshold = float(stdtrit(n - 1, 1 - level / 2))
    if shift > max(30, 10 * threshold):  # beyond what the noncentral t's series can do, and sure
        return 1.0
    return 1 - float(nctdtr(n - 1, shift, threshold))


def seeds_needed(effect: float, sd: float, level: float = LEVEL) -> int | None:
    """The least number of paired seeds whose t test finds `effect` with POWER, the differences having `sd`.

    The least n >= MINIMUM with P(T'_{n-1, d} > t_{1 - level/2, n-1}) >= 0.8, d = |effect| sqrt(n) / sd the
    noncentrality of T'. `level` is LEVEL over the comparisons of the table, so that the finding survives Holm's
    correction at its strictest. None if more than MOST_SEEDS would be needed.
    """
    if sd == 0:
        return MINIMUM
    if effect == 0 or power(effect, sd, MOST_SEEDS, level) < POWER:
        return None
    low, high = MINIMUM - 1, MOST_SEEDS  # power(low) is too little (or low is below the minimum), power(high) enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, sd, middle, level) >= POWER else (middle, high)
    return high


def detectable_effect(sd: float, n: int, level: float = LEVEL) -> float:
    """The least effect that a two-sided t test of `n` pairs at `level` finds with POWER, the differences having `sd`:
    the inverse of :func:`seeds_needed`, to a part in 10^6.

    Raises:
        ValueError: fewer than two pairs.
    """
    if n < 2:
        raise ValueError("an effect can be detected with two pairs or more")
    if sd == 0:
        return 0.0
    low, high = 0.0, sd
    while power(high, sd, n, level) < POWER:
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, sd, n, level) < POWER else (low, middle)
    return high
