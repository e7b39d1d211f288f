"""The objectives of the theory checks against finite differences and what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from cwd.theory.objectives import OBJECTIVES, SLOPE, circle, parabola, robust_data, robust_regression
from cwd.theory.rate import gradient_bound, theorem1_settings

NAMES = list(OBJECTIVES)


def points(name: str, count: int = 40) -> np.ndarray:
    return 2 * np.random.default_rng(1).standard_normal((count, OBJECTIVES[name](0).dimension))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_slope_of_the_value(name: str) -> None:
    objective, width = OBJECTIVES[name](0), 1e-5
    for x in points(name, 5):
        steps = width * np.eye(objective.dimension)
        slopes = (objective.value(x + steps) - objective.value(x - steps)) / (2 * width)
        np.testing.assert_allclose(objective.gradient(x), slopes, rtol=1e-6, atol=1e-6 * np.max(np.abs(slopes)))


@pytest.mark.parametrize("name", NAMES)
def test_many_points_at_once_are_the_points_one_by_one(name: str) -> None:
    objective, many = OBJECTIVES[name](0), points(name, 6)
    stacked = many.reshape(2, 3, -1)
    np.testing.assert_allclose(objective.value(stacked).reshape(-1), [objective.value(x) for x in many], rtol=1e-12)
    np.testing.assert_allclose(
        objective.gradient(stacked).reshape(6, -1), [objective.gradient(x) for x in many], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", [name for name in NAMES if OBJECTIVES[name](0).lipschitz])
def test_the_lipschitz_constant_bounds_the_change_of_the_gradient(name: str) -> None:
    objective = OBJECTIVES[name](0)
    a, b = points(name, 400).reshape(2, 200, -1)
    b = a + 1e-3 * b  # near pairs see the curvature
    change = np.linalg.norm(objective.gradient(a) - objective.gradient(b), axis=1) / np.linalg.norm(a - b, axis=1)
    assert 0.1 * objective.lipschitz < np.max(change) <= objective.lipschitz  # and of the right order


@pytest.mark.parametrize("name", [name for name in NAMES if OBJECTIVES[name](0).minimum is not None])
def test_no_value_is_below_the_least_one(name: str) -> None:
    objective = OBJECTIVES[name](0)
    assert np.min(objective.value(points(name))) >= objective.minimum


def test_robust_regression_reaches_its_least_value_and_its_curvature() -> None:
    objective, (inputs, minimiser) = robust_regression(3), robust_data(3, 10, 40)
    assert objective.value(minimiser) == 0
    hessian = 2 * inputs.T @ inputs / 40  # at the minimiser, where phi'' is 2
    assert np.linalg.eigvalsh(hessian)[-1] == pytest.approx(objective.lipschitz, rel=1e-12)


def test_the_slope_of_the_robust_loss() -> None:
    r = np.linspace(-5, 5, 200_001)
    assert np.max(np.abs(np.gradient(r**2 / (1 + r**2), r))) == pytest.approx(SLOPE, rel=1e-6)


def test_the_gradient_bound_of_theorem_1_holds_and_is_of_the_right_size() -> None:
    settings = theorem1_settings()
    objective = robust_regression(settings["seed"], settings["dimension"], settings["samples"])
    x = np.random.default_rng(0).standard_normal((100_000, 10)) * 2
    noise = settings["sigma"] / settings["dimension"] ** 0.5
    largest = np.max(np.abs(objective.gradient(x))) + noise
    assert 0.5 * gradient_bound(settings) < largest <= gradient_bound(settings)


def test_toys_vanish_on_their_curves_alone() -> None:
    angle, x = np.linspace(0, 6, 50), np.linspace(-1, 6, 50)
    on_circle = np.stack([3 + np.cos(angle), 3 + np.sin(angle)], axis=1)
    on_parabola = np.stack([x, 3 + (x - 3) ** 2], axis=1)
    assert np.max(circle().value(on_circle)) < 1e-28
    assert np.max(parabola().value(on_parabola)) < 1e-26
    assert circle().value(np.array([2.0, 2.0])) == 1  # the paper's AdamW ends there, with these values
    assert parabola().value(np.array([2.0, 2.0])) == 4
