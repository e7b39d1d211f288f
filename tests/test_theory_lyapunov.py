"""The Lyapunov functions and their derivatives against finite differences along the flow, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cwd.theory.dynamics import SGD, SGDM, Adam, Dynamics, LionK, Mask
from cwd.theory.lyapunov import rate, sharp_gap, value
from cwd.theory.norms import norm_gap, norm_gradient, norm_value
from cwd.theory.objectives import Array, quadratic, ripples
from cwd.theory.signs import conflict, study_signs, worst_matrix

F = ripples(0, dimension=4, waves=6)
WIDE = 0.5  # a layer in which many random states lie
KINDS: dict[str, tuple[type[Dynamics], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "sgdm": (SGDM, {"beta": 0.7}),
    "lion": (LionK, {"alpha": 0.8, "gamma": 0.3, "smoothing": 0.1}),
    "muon": (LionK, {"alpha": 0.8, "gamma": 0.3, "smoothing": 0.1, "norm": "nuclear"}),
    "muon's own mask": (LionK, {"alpha": 0.8, "gamma": 0.3, "smoothing": 0.1, "norm": "nuclear", "reads": "direction"}),
    "adam": (Adam, {"alpha": 0.6, "gamma": 0.9, "eps": 1e-2}),
}


def states(dynamics: Dynamics, count: int = 30) -> Array:
    found = np.random.default_rng(0).standard_normal((count, dynamics.buffers, 4))
    if dynamics.buffers == 3:
        found[:, 2] = np.abs(found[:, 2]) + 0.1
    return found


def flow_derivative(dynamics: Dynamics, t: float, state: Array) -> float:
    """dH/dt by a central difference of H along the velocity, and along the time that a and c of Adam depend on."""
    step, velocity = 1e-6, dynamics.velocity(dynamics.point(t, state)).reshape(state.shape)
    ends = [value(dynamics, dynamics.point(t + side * step, state + side * step * velocity)) for side in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("mask", [Mask(WIDE), Mask(WIDE, "below"), Mask(1e-9), Mask(None)], ids=str)
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_rate_is_the_derivative_of_h_along_the_flow(kind: str, mask: Mask) -> None:
    make, constants = KINDS[kind]
    dynamics = make(F, 0.4, mask, **constants)
    for state in states(dynamics):
        slope = flow_derivative(dynamics, 0.9, state)
        assert rate(dynamics, dynamics.point(0.9, state)) == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["sgd", "sgdm", "lion", "adam"])
def test_no_rate_is_positive_with_the_layer_above_and_some_are_without_a_mask(kind: str) -> None:
    make, constants = KINDS[kind]
    masked, plain = (make(F, 10.0, mask, **constants) for mask in (Mask(WIDE), Mask(None)))
    rates = [rate(masked, masked.point(0.9, state)) for state in states(masked, 500)]
    assert max(rates) <= 0
    assert min(rates) < -1
    assert max(rate(plain, plain.point(0.9, state)) for state in states(plain, 500)) > 1


def test_the_papers_rates_by_hand() -> None:
    m, x = np.array([2.0, -1.0, 0.5, -3.0]), np.array([1.0, 1.0, -2.0, -0.5])  # m x = 2, -1, -1, 1.5
    state, decay = np.stack([x, m]), 0.4
    sgdm = SGDM(F, decay, Mask(1e-9), beta=0.7)
    # -(0.4 + 0.7) (4 + 9) - 0.7 (1 + 0.25) - 0.4 (0.7 + 0.4) (2 + 1.5)
    assert rate(sgdm, sgdm.point(0, state)) == pytest.approx(-14.3 - 0.875 - 1.54)
    lion = LionK(F, decay, Mask(1e-9), alpha=1.0, gamma=0.3, smoothing=0.0)
    # the mask is on where m x <= 0: -(0.4 + 0.3) (1 + 0.5) - 0.3 (2 + 3) - 0.4 (0.4 + 0.3) (1 + 1)
    assert rate(lion, lion.point(0, state)) == pytest.approx(-1.05 - 1.5 - 0.56)
    sgd = SGD(F, decay, Mask(1e-9))
    g = F.gradient(x)
    expected = -float(g @ g) - decay * float(np.sum(np.maximum(g * x, 0)))
    assert rate(sgd, sgd.point(0, state[:1])) == pytest.approx(expected)


def test_the_papers_functions_by_hand() -> None:
    m, x = np.array([2.0, -1.0, 0.5, -3.0]), np.array([1.0, 1.0, -2.0, -0.5])
    v, decay, f = np.array([4.0, 1.0, 0.25, 9.0]), 0.4, float(F.value(np.array([1.0, 1.0, -2.0, -0.5])))
    sgdm = SGDM(F, decay, Mask(0.1), beta=0.7)
    assert value(sgdm, sgdm.point(0, np.stack([x, m])), sharp=True) == pytest.approx(0.7 * f + 14.25 / 2 + 0.4 * 3.5)
    lion = LionK(F, decay, Mask(0.1), alpha=0.8, smoothing=0.1)
    assert value(lion, lion.point(0, np.stack([x, m])), sharp=True) == pytest.approx(0.8 * f + 6.5 + 0.4 * 2)
    late = 1e4  # a = c = 1; with v = m^2 and no eps, a m^2 / (2 h) is |m| / 2
    adam = Adam(F, decay, Mask(0.1), alpha=0.6, gamma=0.9, eps=0.0)
    assert value(adam, adam.point(late, np.stack([x, m, v])), sharp=True) == pytest.approx(0.6 * f + 3.25 + 0.4 * 3.5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_papers_h_is_within_the_gap_of_the_regularised_one(kind: str) -> None:
    make, constants = KINDS[kind]
    for side in ("above", "below"):
        dynamics = make(F, 0.4, Mask(WIDE, side), **constants)
        points = [dynamics.point(0.9, state) for state in states(dynamics, 200)]
        gaps = [abs(value(dynamics, p) - value(dynamics, p, sharp=True)) for p in points]
        assert max(gaps) <= sharp_gap(dynamics) * (1 + 1e-12)
        assert kind == "sgd" or max(gaps) > 0.2 * sharp_gap(dynamics)


def test_the_bound_on_gamma_is_where_adams_rate_can_turn_positive() -> None:
    """v far above g^2 makes h fall fastest, h' / h near -gamma / 2: then the sign is that of gamma / 4 - alpha."""
    x, m, v = np.full(4, -1e-9), np.ones(4), np.full(4, 1e6)
    for ratio, sign in ((3.9, -1), (4.1, 1)):
        adam = Adam(F, 0.4, Mask(1e-12), alpha=1.0, gamma=ratio, eps=0.0)
        assert np.sign(rate(adam, adam.point(50.0, np.stack([x, m, v])))) == sign


# The norms


@pytest.mark.parametrize("norm", ["l1", "nuclear"])
def test_norm_gradients_are_the_slopes_of_their_values(norm: str) -> None:
    m, shape, step = np.random.default_rng(0).standard_normal(6), (3, 2), 1e-6
    slopes = [
        (norm_value(norm, m + e, shape, 0.1) - norm_value(norm, m - e, shape, 0.1)) / (2 * step)
        for e in step * np.eye(6)
    ]
    np.testing.assert_allclose(norm_gradient(norm, m, shape, 0.1), slopes, rtol=1e-7)


def test_norms_without_smoothing_are_numpys() -> None:
    m = np.random.default_rng(0).standard_normal(6)
    assert norm_value("l1", m, (3, 2), 0.0) == pytest.approx(np.linalg.norm(m, 1))
    assert norm_value("nuclear", m, (3, 2), 0.0) == pytest.approx(np.linalg.norm(m.reshape(3, 2), "nuc"))
    polar = norm_gradient("nuclear", m, (3, 2), 0.0).reshape(3, 2)
    np.testing.assert_allclose(polar.T @ polar, np.eye(2), atol=1e-12)
    assert norm_gradient("l1", np.array([-2.0, 0.0, 3.0]), (3, 1), 0.0).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("norm", ["l1", "nuclear"])
def test_smoothed_norms_are_convex_least_at_zero_and_within_the_gap(norm: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        a, b = generator.standard_normal((2, 6))
        middle = norm_value(norm, (a + b) / 2, (3, 2), 0.1)
        assert middle <= (norm_value(norm, a, (3, 2), 0.1) + norm_value(norm, b, (3, 2), 0.1)) / 2 + 1e-12
        below = norm_value(norm, a, (3, 2), 0.0) - norm_value(norm, a, (3, 2), 0.1)
        assert 0 <= below <= norm_gap(norm, (3, 2), 0.1)
    assert norm_value(norm, np.zeros(6), (3, 2), 0.1) == 0
    assert np.all(norm_gradient(norm, np.zeros(6), (3, 2), 0.1) == 0)


# The condition on K for Muon


def test_the_conflict_by_hand() -> None:
    # ((-1, 2), (-2, 3)) has U V^T = ((1, 2), (-2, 1)) / sqrt(5): one of four entries disagrees, -1 / sqrt(5), and the
    # nuclear norm is <U V^T, m> = (-1 + 4 + 4 + 3) / sqrt(5)
    share, size = conflict(np.array([-1.0, 2.0, -2.0, 3.0]), (2, 2))
    assert share == 0.25
    assert size == pytest.approx(0.1)


@pytest.mark.parametrize("power", [1, 2])
def test_the_worst_matrix_nearly_reaches_the_bound_and_no_random_one_passes_it(power: int) -> None:
    rows = 4**power
    bound = (rows**0.5 - 1) / 2
    assert 0.95 * bound < conflict(worst_matrix(power), (rows, rows))[1] < bound
    generator = np.random.default_rng(0)
    assert max(conflict(generator.standard_normal(rows**2), (rows, rows))[1] for _ in range(200)) < bound


def test_h_rises_for_muon_exactly_beyond_the_decay_that_the_conflict_allows() -> None:
    paths = study_signs(0, [1.9, 2.1], 1e-4, 1e-8)["paths"]  # gamma = 1, conflict 0.497: the limit is 2.01
    assert paths[0]["rise"] <= paths[0]["tolerance"]
    assert paths[1]["rise"] > 100 * paths[1]["tolerance"]


def test_the_rate_of_muon_is_positive_where_signs_conflict_enough() -> None:
    m, f = worst_matrix(1), quadratic(0, dimension=16)
    product = norm_gradient("nuclear", m, (4, 4), 0.0) * m
    x = 1e-6 * np.sign(m) * np.where(product < 0, -1.0, 1.0)
    for decay, sign in ((1.9, -1), (2.1, 1)):
        muon = LionK(f, decay, Mask(1e-9), norm="nuclear", smoothing=0.0)
        state = np.stack([x, m])
        assert np.sign(rate(muon, muon.point(0, state))) == sign
        assert np.sign(flow_derivative(muon, 0, state)) == sign
