"""Sliding on the manifold of stationary points  (CWD paper, section 3.2), on the two toys, where it is known exactly.

With grad f = 0 on a plane curve M with normal n, a path stays in M only if x' = -lambda * s * x has <n, s x> = 0.
If n_1 x_1 and n_2 x_2 have one sign, only s = 0 does: the point is on the local Pareto front. Else the path slides with
the largest such s in [0, 1]^2, which the mask's ">=" asks for: s_i = min_j |n_j x_j| / |n_i x_i|.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from cwd.theory.dynamics import Dynamics
from cwd.theory.lyapunov import value
from cwd.theory.objectives import Array
from cwd.theory.paths import integrate, largest_rise, points_of

NORMALS = {"circle": lambda p: p - 3.0, "parabola": lambda p: np.array([-2 * (p[0] - 3.0), 1.0])}
STARTS = {"circle": (2.5, 3 + 0.75**0.5), "parabola": (4.5, 5.25)}  # on M, off its front


def sliding_velocity(toy: str, p: Array, weight_decay: float) -> Array:
    """x' of the sliding mode at a point p (2,) of the toy's manifold."""
    pull = NORMALS[toy](p) * p
    if pull[0] * pull[1] >= 0:
        return np.zeros(2)
    sizes = np.abs(pull)
    return -weight_decay * np.min(sizes) / sizes * p


def sliding_path(toy: str, start: Array, weight_decay: float, end: float, points: int) -> Array:
    """The sliding mode from `start` on M, at `points` even times from 0 to `end`: (points, 2)."""
    found = solve_ivp(
        lambda t, p: sliding_velocity(toy, p, weight_decay),
        (0.0, end),
        start,
        method="DOP853",
        t_eval=np.linspace(0.0, end, points),
        rtol=1e-10,
        atol=1e-12,
    )
    return found.y.T


def compare_with_sliding(toy: str, flows: list[Dynamics], end: float, tolerance: float) -> dict[str, Any]:
    """How far the dynamics, started at rest on M with ever thinner layers below the surface, are from the sliding mode.

    Args:
        flows: the dynamics of one optimizer on the toy, one for each layer.
        end: when to stop, before the sliding mode reaches the end of the front.
        tolerance: of the integrator.
    """
    start, count = np.array(STARTS[toy]), 201
    exact = sliding_path(toy, start, flows[0].weight_decay, end, count)
    rows = []
    for dynamics in flows:
        state = dynamics.start(start)
        path = integrate(dynamics, state, dynamics.begins + end, count, tolerance)
        rows.append(
            {
                "layer": dynamics.mask.width,
                "distance": float(np.max(np.linalg.norm(path.states[:, 0] - exact, axis=1))),
                "largest_f": float(np.max(dynamics.objective.value(path.states[:, 0]))),
                "rise": largest_rise(value(dynamics, points_of(dynamics, path))),
            }
        )
    length = float(np.sum(np.linalg.norm(np.diff(exact, axis=0), axis=1)))
    return {"start": start.tolist(), "end": exact[-1].tolist(), "length": length, "layers": rows}
