"""Intervals, tests, Holm's correction and power, against scipy, worked examples and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cwd.evidence.statistics import (
    MINIMUM,
    RegionTest,
    detectable_effect,
    estimate,
    holm,
    power,
    region_test,
    seeds_needed,
    verdicts,
)

SAMPLES = [
    [-0.01, 0.01, -0.03],
    [-0.5, 0.5, 0.1, 0.2],
    [-1.0, -1.1, -0.8, -0.7, -0.9],
    [0.02, 0.01, 0.03, 0.015, 0.022, 0.013],
]


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("values", SAMPLES)
def test_the_interval_is_scipys(values: list[float], confidence: float) -> None:
    ours, theirs = estimate(values, confidence), stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert (ours.mean, ours.sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert ours.n == len(values)


@pytest.mark.parametrize("values", SAMPLES[1:])
def test_the_bootstrap_interval_is_scipys(values: list[float]) -> None:
    ours = estimate(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=99_999, rng=1).confidence_interval
    close = 0.05 * float(np.std(values))  # what is left of chance in 9,999 resamples
    assert ours.bootstrap_low == pytest.approx(theirs.low, abs=close)
    assert ours.bootstrap_high == pytest.approx(theirs.high, abs=close)
    assert estimate(values) == ours


def test_one_value_has_no_interval_and_none_are_refused() -> None:
    assert (estimate([0.5]).mean, estimate([0.5]).sd, estimate([0.5]).low) == (0.5, None, None)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


@pytest.mark.parametrize("bound", [0.0, -0.02, 0.4])
@pytest.mark.parametrize("values", SAMPLES)
def test_one_sided_p_values_are_scipys(values: list[float], bound: float) -> None:
    less, greater = (stats.ttest_1samp(values, bound, alternative=side).pvalue for side in ("less", "greater"))
    below, above = region_test(values, "below", [bound]), region_test(values, "above", [bound])
    assert (below.inside, below.outside) == (pytest.approx(less), pytest.approx(greater))
    assert (above.inside, above.outside) == (pytest.approx(greater), pytest.approx(less))
    assert below.p == pytest.approx(stats.ttest_1samp(values, bound).pvalue)


@pytest.mark.parametrize("values", SAMPLES)
def test_within_is_two_one_sided_tests(values: list[float]) -> None:
    low, high = -0.05, 0.05
    p = {
        (bound, side): stats.ttest_1samp(values, bound, alternative=side).pvalue
        for bound in (low, high)
        for side in ("less", "greater")
    }
    test = region_test(values, "within", [low, high])
    assert test.inside == pytest.approx(max(p[low, "greater"], p[high, "less"]))
    assert test.outside == pytest.approx(min(p[low, "less"], p[high, "greater"]))


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.5, 0.5, 0.5, 0.5]])
def test_too_few_values_or_no_spread_test_nothing(values: list[float]) -> None:
    assert region_test(values, "above", [0.0]).p == 1
    assert MINIMUM == 3


# Holm (1979), worked by hand: sorted p times what is left, never below the one before, at most 1.
HOLM = [
    ([0.01, 0.04, 0.03, 0.005], None, [0.03, 0.06, 0.06, 0.02]),
    ([0.01, 0.01, 0.01], None, [0.03, 0.03, 0.03]),
    ([0.5, 0.6], None, [1.0, 1.0]),
    ([0.02], 5, [0.1]),
    ([0.02, 0.001], 4, [0.06, 0.004]),
    ([], 3, []),
]


@pytest.mark.parametrize(("p", "size", "adjusted"), HOLM)
def test_holm_by_hand(p: list[float], size: int | None, adjusted: list[float]) -> None:
    assert holm(p, size) == pytest.approx(adjusted)


def test_holm_rejects_as_the_step_down_procedure_does() -> None:
    """The textbook's form: go through the sorted p-values, reject while p <= level / (m - rank)."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.uniform(0, 0.1, size=rng.integers(1, 12))
        rejected, order = set(), np.argsort(p)
        for rank, i in enumerate(order):
            if p[i] > 0.05 / (len(p) - rank):
                break
            rejected.add(int(i))
        assert {i for i, q in enumerate(holm(list(p))) if q <= 0.05} == rejected


def test_a_verdict_needs_significance_after_holm_and_takes_the_surer_side() -> None:
    tests = [RegionTest(0.001, 0.999), RegionTest(0.999, 0.001), RegionTest(0.02, 0.98), RegionTest(0.4, 0.6)]
    assert verdicts(tests) == ["supported", "contradicted", "unresolved", "unresolved"]
    assert verdicts(tests[2:3]) == ["supported"]
    assert verdicts(tests[2:3], size=2) == ["unresolved"]
    assert verdicts([]) == []


# Power


@pytest.mark.parametrize(("effect", "sd", "n"), [(0.01, 0.01, 5), (0.01, 0.02, 12), (-0.3, 0.4, 20)])
def test_power_is_what_simulation_finds(effect: float, sd: float, n: int) -> None:
    draws = np.random.default_rng(1).normal(effect, sd, (40_000, n))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(n)) * np.sign(effect)
    found = float((t > stats.t.ppf(0.975, n - 1)).mean())
    assert power(effect, sd, n) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(("effect", "sd"), [(0.0077, 0.01), (0.0045, 0.009), (0.09, 0.01), (-0.0109, 0.02)])
@pytest.mark.parametrize("comparisons", [1, 18])
def test_the_seeds_needed_are_the_least_with_power(effect: float, sd: float, comparisons: int) -> None:
    level = 0.05 / comparisons
    needed = seeds_needed(effect, sd, level)
    assert needed is not None

    def reference(n: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(1 - level / 2, n - 1), n - 1, abs(effect) * math.sqrt(n) / sd))

    assert reference(needed) >= 0.8
    assert needed == MINIMUM or reference(needed - 1) < 0.8


def test_a_textbooks_sample_size() -> None:
    """A paired t test for d = 0.5, two-sided 0.05, power 0.8: 34 pairs (Cohen 1988; G*Power)."""
    assert seeds_needed(0.5, 1.0) == 34


def test_what_no_number_of_seeds_resolves_is_none() -> None:
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None


# Calibration: arms that are the same are called different in at most 5% of tables


def different(tables: np.ndarray) -> float:
    """The share of tables (tables, comparisons, seeds) of which any comparison gets a verdict."""
    found = [verdicts([region_test(list(row), "below", [0.0]) for row in table]) for table in tables]
    return sum(set(one) != {"unresolved"} for one in found) / len(found)


def test_tables_of_equal_arms_are_called_different_in_at_most_5_percent() -> None:
    """1,000 tables like Table 10's: loss and accuracy, which go together, of nine cells with five seeds each."""
    rng = np.random.default_rng(0)
    loss = rng.normal(0, 0.01, (1000, 9, 5))
    accuracy = 0.7 * loss + rng.normal(0, 0.007, loss.shape)
    assert different(np.concatenate([loss, accuracy], axis=1)) <= 0.05


def test_the_level_of_a_table_is_used_and_not_exceeded() -> None:
    """Comparisons that have nothing to do with each other come closest to the level; 3 standard errors of room."""
    draws = np.random.default_rng(3).normal(0, 0.01, (6000, 4, 5))
    assert 0.04 < different(draws) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 6000)


def test_differences_with_heavy_tails_are_not_called_more_often() -> None:
    draws = np.random.default_rng(4).standard_t(3, (1000, 9, 5))
    assert different(draws) <= 0.05


def test_a_difference_that_is_there_is_found() -> None:
    draws = np.random.default_rng(5).normal(-0.03, 0.005, (200, 9, 5))
    found = [verdicts([region_test(list(row), "below", [0.0]) for row in table]) for table in draws]
    assert sum(one.count("supported") for one in found) > 0.95 * 200 * 9
    assert all("contradicted" not in one for one in found)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 50])
@pytest.mark.parametrize("level", [0.05, 0.05 / 18])
def test_the_detectable_effect_is_found_with_power_by_scipys_noncentral_t(n: int, level: float) -> None:
    sd = 0.004
    effect = detectable_effect(sd, n, level)
    threshold = stats.t.ppf(1 - level / 2, n - 1)
    assert stats.nct.sf(threshold, n - 1, effect * math.sqrt(n) / sd) == pytest.approx(0.8, abs=1e-5)


def test_the_detectable_effect_is_the_inverse_of_the_seeds_needed() -> None:
    for n in (4, 7, 20):
        effect = detectable_effect(0.01, n)
        assert seeds_needed(1.001 * effect, 0.01) == n
        assert seeds_needed(0.999 * effect, 0.01) == n + 1
    assert detectable_effect(0.0, 5) == 0.0
    with pytest.raises(ValueError, match="two pairs"):
        detectable_effect(0.01, 1)
