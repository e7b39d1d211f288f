"""The dynamics against the paper's formulas, scipy, closed forms, and the sliding mode."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.optimize import brentq

from cwd.theory.dynamics import SGD, SGDM, Adam, Dynamics, LionK, Mask
from cwd.theory.objectives import Array, Objective, circle, parabola, quadratic, rosenbrock
from cwd.theory.paths import integrate, largest_rise
from cwd.theory.sliding import STARTS, compare_with_sliding, sliding_path, sliding_velocity
from tests.theory_helpers import ALPHA, BETA, EPS, GAMMA, LAMBDA, written_out

THIN = 1e-7


def make(name: str, f: Objective, mask: Mask) -> Dynamics:
    if name == "sgd":
        return SGD(f, LAMBDA, mask)
    if name == "sgdm":
        return SGDM(f, LAMBDA, mask, beta=BETA)
    if name == "lion":
        return LionK(f, LAMBDA, mask, alpha=ALPHA, gamma=GAMMA, smoothing=0.0)
    return Adam(f, LAMBDA, mask, alpha=ALPHA, gamma=GAMMA, eps=EPS)


# The mask


@pytest.mark.parametrize("side", ["above", "below"])
def test_the_selection_is_the_indicator_outside_of_the_layer_and_between_inside(side: str) -> None:
    mask = Mask(0.1, side)
    y = np.linspace(-1, 1, 2001)
    s, edge = mask.selection(y), -0.1 if side == "below" else 0.0
    assert np.all(s[y <= edge] == 0)
    assert np.all(s[y >= edge + 0.1] == 1)
    assert np.all(np.diff(s) >= 0)
    assert np.interp(edge + 0.05, y, s) == pytest.approx(0.5)
    assert mask.selection(np.zeros(1))[0] == (side == "below")  # the paper's 1[0 >= 0] is that of "below"


@pytest.mark.parametrize("side", ["above", "below"])
def test_the_primitive_has_the_selection_as_its_slope_and_is_near_the_positive_part(side: str) -> None:
    mask = Mask(0.1, side)
    y = np.linspace(-0.3, 0.3, 60_001)
    np.testing.assert_allclose(np.gradient(mask.primitive(y), y)[1:-1], mask.selection(y)[1:-1], atol=1e-6)
    gap = mask.primitive(y) - np.maximum(y, 0)
    assert np.max(np.abs(gap)) == pytest.approx(0.05)
    assert np.all(gap <= 1e-15 if side == "above" else gap >= -1e-15)


def test_no_mask_decays_everywhere() -> None:
    y = np.array([-1.0, 0.0, 2.0])
    assert np.all(Mask(None).selection(y) == 1)
    assert np.all(Mask(None).primitive(y) == y)


# The right-hand sides


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["sgd", "sgdm", "lion", "adam"])
def test_velocity_is_the_papers_formula_off_the_surface(name: str, masked: bool) -> None:
    f, generator = rosenbrock(0), np.random.default_rng(0)
    dynamics = make(name, f, Mask(THIN if masked else None))
    for _ in range(20):
        state = generator.standard_normal((dynamics.buffers, 4))
        if dynamics.buffers == 3:
            state[2] **= 2
        ours = dynamics.velocity(dynamics.point(0.7, state))
        np.testing.assert_allclose(ours, written_out(name, f, masked)(0.7, state.reshape(-1)), rtol=1e-12, atol=1e-12)


def test_the_mask_of_lion_k_reads_m_as_in_table_1_or_grad_k_as_in_the_algorithm() -> None:
    f = quadratic(0, dimension=4)
    m = np.array([-1.0, 2.0, -2.0, 3.0])  # the matrix ((-1, 2), (-2, 3)): U V^T is ((1, 2), (-2, 1)) / sqrt(5)
    x = np.full(4, 0.3)
    table = LionK(f, LAMBDA, Mask(THIN), norm="nuclear", smoothing=0.0)
    algorithm = LionK(f, LAMBDA, Mask(THIN), norm="nuclear", smoothing=0.0, reads="direction")
    u = -np.array([1.0, 2.0, -2.0, 1.0]) / 5**0.5
    np.testing.assert_allclose(table.point(0, np.stack([x, m])).u, u, atol=1e-12)
    assert table.point(0, np.stack([x, m])).s.tolist() == [1, 0, 1, 0]  # m x <= 0
    assert algorithm.point(0, np.stack([x, m])).s.tolist() == [0, 0, 1, 0]  # grad K(m) x <= 0


def test_adam_starts_as_if_its_gradient_had_been_constant() -> None:
    f = rosenbrock(0)
    dynamics, x = Adam(f, LAMBDA, Mask(THIN), alpha=ALPHA, gamma=GAMMA, eps=EPS), np.array([0.5, -1.0, 2.0, 0.1])
    g = f.gradient(x)
    constant = solve_ivp(  # m and v from 0 at time 0, with this g
        lambda t, z: np.concatenate([ALPHA * (g - z[:4]), GAMMA * (g * g - z[4:])]),
        (0, dynamics.begins),
        np.zeros(8),
        rtol=1e-11,
        atol=1e-13,
    )
    np.testing.assert_allclose(dynamics.start(x)[1:].reshape(-1), constant.y[:, -1], rtol=1e-8)


# Paths


@pytest.mark.parametrize("name", ["sgd", "sgdm", "adam"])
def test_a_path_without_switches_is_scipys_with_the_indicator(name: str) -> None:
    f = quadratic(0, dimension=3, condition=4.0)
    minimiser = f.gradient(np.zeros(3))  # only its signs are used
    start = np.sign(-minimiser) * np.array([4.0, 5.0, 6.0])  # beyond the minimiser: grad f, m and x agree for a while
    dynamics = make(name, f, Mask(THIN))
    state, end = dynamics.start(start, None if name == "adam" else f.gradient(start)), dynamics.begins + 0.2
    path = integrate(dynamics, state, end, 11, 1e-10)
    exact = solve_ivp(
        written_out(name, f), (dynamics.begins, end), state.reshape(-1), method="DOP853", rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(path.states[-1].reshape(-1), exact.y[:, -1], rtol=1e-7, atol=1e-8)


def one_dimensional(k: float, b: float) -> Objective:
    return Objective(lambda x: 0.5 * k * np.sum((x - b) ** 2, axis=-1), lambda x: k * (x - b), 1, (1, 1))


def exact_sgdm(k: float, b: float, start: Array, end: float) -> Array:
    """x and m of SGDM + CWD on 1/2 k (x - b)^2 with x > 0: linear pieces, by the matrix exponential, which meet where
    m = 0, found by bisection.
    """

    def after(state: Array, on: bool, t: float) -> Array:
        matrix = np.array([[-LAMBDA * on, -1.0, 0.0], [BETA * k, -BETA, -BETA * k * b], [0.0, 0.0, 0.0]])
        return (expm(matrix * t) @ np.append(state, 1.0))[:2]

    state, t = start, 0.0
    on = state[1] > 0 or (state[1] == 0 and k * (state[0] - b) > 0)
    while t < end:
        times = np.linspace(1e-9, end - t, 400)
        signs = [after(state, on, time)[1] > 0 for time in times]
        if all(sign == on for sign in signs):
            return after(state, on, end - t)
        first = next(i for i, sign in enumerate(signs) if sign != on)
        low = times[first - 1] if first else 1e-12
        crossing = brentq(lambda time, now=state, side=on: after(now, side, time)[1], low, times[first], xtol=1e-14)
        state, t, on = after(state, on, crossing), t + crossing, not on
        state[1] = 0.0
    return state


def test_crossings_are_those_of_the_piecewise_linear_solution() -> None:
    k, b, start = 6.0, 1.0, np.array([2.0, 0.0])
    exact = exact_sgdm(k, b, start, 6.0)
    errors = []
    for width in (1e-2, 1e-4, 1e-6):
        dynamics = SGDM(one_dimensional(k, b), LAMBDA, Mask(width), beta=BETA)
        path = integrate(dynamics, start[:, None], 6.0, 2, 1e-10)
        errors.append(float(np.max(np.abs(path.states[-1, :, 0] - exact))))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


def test_a_sliding_coordinate_stays_on_the_surface_with_the_selection_that_holds_it_there() -> None:
    # f = (x1 + x2 - 3)^2 / 2 + c x2 with c < 0. On grad_1 f = 0: grad_2 f = c, so that x2 is not decayed and x2' = -c,
    # and x1' = -lambda s1 x1 = c keeps it there.
    c = -0.1

    def gradient(x: Array) -> Array:
        pull = x[..., 0] + x[..., 1] - 3
        return np.stack([pull, pull + c], axis=-1)

    f = Objective(lambda x: 0.5 * (x[..., 0] + x[..., 1] - 3) ** 2 + c * x[..., 1], gradient, 2, (2, 1))
    for width in (1e-3, 1e-5):
        dynamics = SGD(f, LAMBDA, Mask(width))
        path = integrate(dynamics, dynamics.start(np.array([2.0, 1.0])), 3.0, 31, 1e-10)
        x = path.states[:, 0]
        np.testing.assert_allclose(x[:, 0], 2 + c * path.t, atol=2 * width)
        np.testing.assert_allclose(x[:, 1], 1 - c * path.t, atol=2 * width)
        s = np.array([dynamics.point(t, state).s[0] for t, state in zip(path.t, path.states, strict=True)])
        np.testing.assert_allclose(s[1:], -c / (LAMBDA * x[1:, 0]), rtol=0.02)


# The sliding mode on the toys


@pytest.mark.parametrize("toy", list(STARTS))
def test_the_sliding_mode_stays_on_the_minimisers_and_shrinks_every_coordinate(toy: str) -> None:
    f = {"circle": circle(), "parabola": parabola()}[toy]
    path = sliding_path(toy, np.array(STARTS[toy]), LAMBDA, 0.4, 101)
    assert np.max(f.value(path)) < 1e-16
    assert np.all(np.diff(np.abs(path), axis=0) <= 0)
    selections = np.array([sliding_velocity(toy, p, LAMBDA) for p in path]) / (-LAMBDA * path)
    assert np.all((selections >= 0) & (selections <= 1 + 1e-12))
    np.testing.assert_allclose(np.max(selections, axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(("toy", "point"), [("circle", (2.3, 3 - 0.51**0.5)), ("parabola", (1.0, 7.0))])
def test_the_front_is_where_the_sliding_mode_rests(toy: str, point: tuple[float, float]) -> None:
    assert np.all(sliding_velocity(toy, np.array(point), LAMBDA) == 0)


@pytest.mark.parametrize("toy", list(STARTS))
def test_paths_come_to_the_sliding_mode_as_the_layer_thins(toy: str) -> None:
    f = {"circle": circle(), "parabola": parabola()}[toy]
    found = compare_with_sliding(toy, [SGD(f, LAMBDA, Mask(w, "below")) for w in (1e-2, 1e-3, 1e-4)], 0.4, 1e-9)
    distances = [row["distance"] for row in found["layers"]]
    assert distances[0] < 2e-3 * found["length"]
    np.testing.assert_allclose(np.array(distances[1:]) / distances[:-1], 0.1, atol=0.03)  # first order


def test_the_largest_rise_is_over_any_earlier_value() -> None:
    assert largest_rise(np.array([3.0, 1.0, 1.5, 1.2, 1.9, 0.0])) == pytest.approx(0.9)
    assert largest_rise(np.array([3.0, 2.0, 2.0])) == 0
