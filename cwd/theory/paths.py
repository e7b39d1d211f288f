"""Paths of the dynamics, by SciPy's integrator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from cwd.theory.dynamics import Dynamics, Point
from cwd.theory.lyapunov import rate
from cwd.theory.objectives import Array


class Path(NamedTuple):
    """A solution at n times: t (n,), states (n, buffers, d), work (n,) the integral of dH/dt from the first time on."""

    t: Array
    states: Array
    work: Array
    evaluations: int


def integrate(dynamics: Dynamics, state: Array, end: float, points: int, tolerance: float) -> Path:
    """The flow from `state` (buffers, d) at ``dynamics.begins`` to the time `end`, at `points` evenly spaced times.

    The analytic dH/dt is integrated along with it, by the same integrator. What H changes and what this integral says
    then differ by the integrator's own error in H, which is so measured and not assumed.

    Args:
        tolerance: relative and absolute tolerance of the local error. The integrator is LSODA, which turns to implicit
            formulas where the equation is stiff, as it is for a coordinate that slides.

    Raises:
        ArithmeticError: the integrator gave up.
    """
    shape = state.shape

    def right(t: float, flat: Array) -> Array:
        p = dynamics.point(t, flat[:-1].reshape(shape))
        return np.concatenate([dynamics.velocity(p), [rate(dynamics, p)]])

    times = np.linspace(dynamics.begins, end, points)
    span, first = (dynamics.begins, end), np.append(state, 0.0)
    found = solve_ivp(right, span, first, method="LSODA", t_eval=times, rtol=tolerance, atol=tolerance)
    if not found.success:
        raise ArithmeticError(f"{type(dynamics).__name__}: the integrator gave up: {found.message}")
    return Path(times, found.y[:-1].T.reshape(points, *shape), found.y[-1], int(found.nfev))


def points_of(dynamics: Dynamics, path: Path) -> Point:
    """What follows from the states at all times of a path: arrays (n, d)."""
    return dynamics.point(path.t[:, None], path.states)


def largest_rise(values: Array) -> float:
    """The most that a series rises above an earlier value of its own: 0 if it never increases."""
    return float(np.max(values - np.minimum.accumulate(values)))
