"""Appendix C: the solvers against closed forms and duality, and where the optimizers end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from cwd.runs import MetricsLog
from cwd.theory.fixed_points import appendix_c_settings, make_objective, project, residual, run_appendix_c, solve

SETTINGS = appendix_c_settings()
DECAY = SETTINGS["weight_decay"]
NAMES = SETTINGS["objectives"]


def test_the_penalised_quadratic_is_solved_as_a_linear_system() -> None:
    f = make_objective(SETTINGS, "quadratic")
    hessian = np.array([f.gradient(e) - f.gradient(0 * e) for e in np.eye(f.dimension)])
    expected = np.linalg.solve(hessian + DECAY * np.eye(f.dimension), -f.gradient(np.zeros(f.dimension)))
    np.testing.assert_allclose(solve(f, "penalty", DECAY), expected, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_box_is_solved_as_by_another_solver_and_holds_x_back(name: str) -> None:
    f = make_objective(SETTINGS, name)
    ours = solve(f, "box", DECAY)
    bounds = [(-1 / DECAY, 1 / DECAY)] * f.dimension
    other = minimize(f.value, np.zeros(f.dimension), jac=f.gradient, method="SLSQP", bounds=bounds, tol=1e-14)
    np.testing.assert_allclose(ours, other.x, atol=1e-5)
    assert np.sum(np.abs(ours) > 0.4999) > 0
    assert np.linalg.norm(f.gradient(ours)) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_norm_ball_is_solved_by_duality(name: str) -> None:
    """x solves it if it is in the ball and <grad f, x> is the least value there, -||grad f||_* / lambda."""
    f = make_objective(SETTINGS, name)
    x = solve(f, "operator", DECAY)
    g = f.gradient(x)
    assert np.linalg.norm(x.reshape(f.shape), 2) <= 1 / DECAY + 1e-9
    assert float(g @ x) == pytest.approx(-np.linalg.norm(g.reshape(f.shape), "nuc") / DECAY, rel=1e-7)
    assert np.linalg.norm(g) > 0.1


@pytest.mark.parametrize("kind", ["box", "operator"])
def test_projections_are_nearest_points(kind: str) -> None:
    f, generator = make_objective(SETTINGS, "quadratic"), np.random.default_rng(0)
    x = 2 * generator.standard_normal(f.dimension)
    near = project(x, kind, DECAY, f)
    np.testing.assert_allclose(project(near, kind, DECAY, f), near, atol=1e-12)
    for _ in range(200):  # convex: <x - near, other - near> <= 0 for every other point of the set
        other = project(generator.standard_normal(f.dimension), kind, DECAY, f)
        assert (x - near) @ (other - near) <= 1e-12


@pytest.mark.parametrize("kind", ["penalty", "box", "operator"])
def test_the_residual_is_zero_at_the_solution_alone(kind: str) -> None:
    f = make_objective(SETTINGS, "logistic")
    x = solve(f, kind, DECAY)
    assert residual(f, kind, DECAY, x) < 1e-7
    assert residual(f, kind, DECAY, 0.9 * x) > 1e-2


def test_optimizers_end_where_the_theory_says(tmp_path: Path) -> None:
    """A short run of each; the full size is in the slow tests."""
    log = MetricsLog(tmp_path / "m")
    changes: dict[str, Any] = {"objectives": ["logistic"], "steps": [200, 1200], "optimizers": ["sgd", "lion"]}
    summary = run_appendix_c({**SETTINGS, **changes}, lambda text: None, log)
    log.close()
    found = summary["objectives"]["logistic"]
    for optimizer in ("sgd", "lion"):
        short, long = found[optimizer]["runs"]
        assert long["decoupled"]["distance"] < 1e-3
        assert long["decoupled"]["gradient_norm"] > 0.1  # not stationary
        assert long["cautious"]["gradient_norm"] < 0.05 * found["gradient_norm_at_start"]
        assert long["cautious"]["gradient_norm"] < short["cautious"]["gradient_norm"]
        assert found[optimizer]["solver"]["residual"] < 1e-7
