"""Theorem 1: its constants by hand, its noise, its mean against Adam + CWD written out, its lemmas, its statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cwd.runs import MetricsLog, read_metrics
from cwd.theory.lemmas import BETAS, check_lemmas, worst_gradients
from cwd.theory.objectives import robust_regression
from cwd.theory.rate import (
    bound,
    constants,
    draw_noise,
    interval,
    run_theorem1,
    slope,
    stationarity,
    theorem1_settings,
)


def small(**more: Any) -> dict[str, Any]:
    sweeps = [{"eps": 1e-8, "horizons": [20, 50, 100]}]
    return {**theorem1_settings(), "sweeps": sweeps, "batches": [1, 16, 0], "seeds": 3, "lemma_steps": 20, **more}


def run(settings: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    log = MetricsLog(tmp_path / "m")
    summary = run_theorem1(settings, lambda text: None, log)
    log.close()
    return summary, read_metrics(tmp_path / "m", "rate")


def test_the_constants_by_hand() -> None:
    """With beta1 = 0.75, beta2 = 0.99, eps = 1, lambda = 0.5, L = 2, d = 3, R = 4, G = 5, f gap = 7: C = 5 and
    G / eps + lambda R = 7.
    """
    given = {"beta1": 0.75, "beta2": 0.99, "eps": 1.0, "weight_decay": 0.5, "lipschitz": 2.0, "dimension": 3}
    k = constants(**given, largest_x=4.0, largest_g=5.0, f_gap=7.0)
    assert k["C"] == pytest.approx(5)
    assert k["K1"] == pytest.approx(6 * 7)
    assert k["K2"] == pytest.approx(0.75 * 5 * 3 * 6 / 0.25 * 7)
    assert k["K3"] == pytest.approx(0.75 * 2 * 3 * (5 + 2) * 6 / 0.25 * 7 + 2 * 3 * (25 + 4) * 6)
    assert k["K4"] == pytest.approx(3 * 6 / 1.75**0.5 * 7)
    lower = constants(**given, largest_x=4.0, largest_g=0.1, f_gap=7.0)  # G is raised to 1 / (1 - beta1) = 4
    assert lower["K1"] == pytest.approx(5 * 7)


def test_the_bound_by_hand() -> None:
    k = {"K1": 2.0, "K2": 3.0, "K3": 5.0, "K4": 7.0}
    assert bound(k, lr=0.1, steps=100, sigma=2.0, batch=49) == pytest.approx(0.2 + 0.03 + 0.5 + 2.0)
    assert bound(k, lr=0.1, steps=100, sigma=2.0, batch=0) == pytest.approx(0.73)


def test_the_measure_by_hand() -> None:
    x, g = np.array([[1.0, -2.0, 3.0]]), np.array([[0.5, 1.0, 0.0]])
    assert stationarity(x, g, 0.1).tolist() == pytest.approx([0.25 + 1.0 + 0.1 * 0.5])


def test_the_noise_is_unbiased_bounded_and_of_the_stated_variance() -> None:
    batches, sigma, dimension = [1, 4, 64, 0], 1.5, 10
    noise = draw_noise(np.random.default_rng(0), batches, (50_000, 4, dimension), sigma)
    variance = np.mean(np.sum(noise**2, axis=2), axis=0)
    np.testing.assert_allclose(variance[:3], [sigma**2 / n for n in batches[:3]], rtol=0.02)
    assert variance[3] == 0
    assert np.max(np.abs(noise)) <= sigma / dimension**0.5 + 1e-12
    assert np.max(np.abs(np.mean(noise, axis=0))) < 5 * sigma / (dimension * 50_000) ** 0.5


def test_the_mean_is_that_of_algorithm_6_written_out(tmp_path: Path) -> None:
    settings = small(sweeps=[{"eps": 1e-8, "horizons": [20, 50]}])
    summary, lines = run(settings, tmp_path)
    f = robust_regression(settings["seed"], 10, 40)
    first = settings["spread"] * np.random.default_rng(settings["seed"]).standard_normal((3, 1, 10))
    expected = [written_out(f.gradient, x[0], 50, 50**-0.5, settings) for x in first]
    assert np.array(lines[1]["means"])[:, 2] == pytest.approx(expected, rel=1e-9)
    assert summary["sweeps"][0]["horizons"][1]["batches"][2]["mean"] == pytest.approx(np.mean(expected), rel=1e-9)


def written_out(gradient: Any, x: np.ndarray, steps: int, lr: float, settings: dict[str, Any]) -> float:
    (beta1, beta2), decay, total = settings["betas"], settings["weight_decay"], 0.0
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradient(x)
        total += g @ g + decay * np.sum(np.maximum(g * x, 0))
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        mhat, vhat = m / (1 - beta1**t), v / (1 - beta2**t)
        x = x - lr * (mhat / (np.sqrt(vhat) + 1e-8) + decay * (mhat * x >= 0) * x)
    return total / steps


def test_a_small_run_is_below_the_bound_and_says_what_it_must(tmp_path: Path) -> None:
    summary, lines = run(small(), tmp_path)
    assert len(lines) == 3
    sweep = summary["sweeps"][0]
    for horizon, line in zip(sweep["horizons"], lines, strict=True):
        assert horizon["lr"] == pytest.approx(horizon["T"] ** -0.5)
        means = np.array(line["means"])
        for row, column in zip(horizon["batches"], means.T, strict=True):
            limits = stats.ttest_1samp(column, 0).confidence_interval(0.95)
            assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(column), *limits))
            assert row["over_bound"] == pytest.approx(row["mean"] / row["bound"])
            assert 0 < row["over_bound"] <= summary["largest_over_bound"] < 1
    assert [row["batch"] for row in sweep["slope_in_T"]] == [1, 16, 0]


def test_slopes_are_scipys() -> None:
    generator = np.random.default_rng(0)
    x = np.array([10.0, 30, 100, 300])
    y = np.exp(generator.standard_normal((4, 5)))
    expected = [stats.linregress(np.log(x), np.log(column)).slope for column in y.T]
    np.testing.assert_allclose(slope(x, y), expected)
    assert interval(np.array(expected))[0] == pytest.approx(np.mean(expected))
    np.testing.assert_allclose(slope(x, 3 * x[:, None] ** -0.5), [-0.5])


# The lemmas


def test_the_worst_gradients_reach_what_cauchy_schwarz_allows() -> None:
    """At step T the largest mhat^2 / vhat is sum w_k^2 / v_k, with the weights of both averages."""
    found = check_lemmas(0, 300)
    for row, (beta1, beta2) in zip(found["update"], BETAS, strict=True):
        steps = len(worst_gradients(beta1, beta2, 300))
        powers = np.arange(steps - 1.0, -1.0, -1.0)
        w = (1 - beta1) * beta1**powers / (1 - beta1**steps)
        v = (1 - beta2) * beta2**powers / (1 - beta2**steps)
        largest = np.sqrt(np.sum(w * w / v))
        assert row["C"] == pytest.approx(((1 - beta1) / (1 - beta2)) ** 0.5)
        assert row["worst_over_C"] * row["C"] == pytest.approx(largest, rel=1e-6)
        assert max(row["worst_over_C"], row["random_over_C"]) <= 1 + 1e-12
    assert found["mask_violations"] == 0
    assert found["mask_checked"] == len(BETAS) * 300 * 64


def test_the_mask_lemma_on_every_combination_of_signs() -> None:
    for m in (-1, 0, 1):
        for g in (-1, 0, 1):
            for x in (-2, 0, 2):
                left = abs(((m * x >= 0) - (g * x >= 0)) * x)
                assert left <= (m * g <= 0) * abs(x)
