"""Where Table 1's condition sgn(grad K(m)) = sgn(m) fails for the nuclear norm, and what follows for Muon.

By H' in :mod:`cwd.theory.lyapunov` and for tiny x, whose signs choose the mask freely, H can rise at m if and only if
lambda * conflict(m) > gamma, where conflict(m) = sum max(0, -grad K(m) * m) / ||m||_*. It is at most (sqrt(columns) -
1) / 2. For let m = O P, O with orthonormal columns, P positive semidefinite. The sum is convex in P, so largest at a
rank-one P = v v^T, where it is (sum_ij |O_ij w_i v_j| - 1) / 2 with w = O v, and the norm of |O| is at most
sqrt(columns). Equality holds for a Hadamard matrix and a vector of entries of one size that it maps to such a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.theory.dynamics import LionK, Mask
from cwd.theory.lyapunov import value
from cwd.theory.norms import norm_gradient, norm_value
from cwd.theory.objectives import Array, quadratic
from cwd.theory.paths import integrate, largest_rise, points_of

FULL_RANK = 1e-3  # weight of the identity in P


def conflict(m: Array, shape: tuple[int, int]) -> tuple[float, float]:
    """(share of entries in which grad K(m) and m have opposite signs, sum max(0, -grad K(m) * m) / ||m||_*)."""
    product = norm_gradient("nuclear", m, shape, 0.0) * m
    return float(np.mean(product < 0)), float(np.sum(np.maximum(-product, 0.0)) / norm_value("nuclear", m, shape, 0.0))


def worst_matrix(power: int) -> Array:
    """The square matrix of 4^power rows for which the bound on the conflict is nearly reached, as a vector.

    O is Sylvester's Hadamard matrix, scaled; v is the Kronecker power of (1, 1, 1, -1) / 2, which O's maps to another
    such vector. A little of the identity makes P definite.
    """
    one = np.array([1.0, 1, 1, -1]) / 2
    block = np.array([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    v: NDArray[Any] = one
    hadamard: NDArray[Any] = block
    for _ in range(power - 1):
        v, hadamard = np.kron(v, one), np.kron(hadamard, block)
    return (hadamard @ (np.outer(v, v) + FULL_RANK * np.eye(v.size))).reshape(-1)


def study_signs(seed: int, decays: list[float], smoothing: float, tolerance: float) -> dict[str, Any]:
    """Conflicts of random and of worst matrices, and paths that start where H' is positive.

    Args:
        decays: values of lambda, with gamma = 1, for the paths.
        smoothing: of the norm, for the paths.
        tolerance: of the integrator.
    """
    generator = np.random.default_rng(seed)
    random = []
    for shape in ((4, 4), (10, 5), (64, 64), (256, 64)):
        found = [conflict(generator.standard_normal(shape[0] * shape[1]), shape) for _ in range(20)]
        share, size = np.mean(found, axis=0)
        random.append({"shape": list(shape), "opposite_signs": float(share), "conflict": float(size)})
    worst = []
    for power in (1, 2, 3):
        rows = 4**power
        share, size = conflict(worst_matrix(power), (rows, rows))
        bound = (rows**0.5 - 1) / 2
        worst.append({"shape": [rows, rows], "opposite_signs": share, "conflict": size, "bound": bound})
    paths = [_path_from_worst(seed, decay, smoothing, tolerance) for decay in decays]
    return {"random": random, "worst": worst, "gamma": 1.0, "paths": paths}


def _path_from_worst(seed: int, decay: float, smoothing: float, tolerance: float) -> dict[str, float]:
    """H along the path from the worst 4 x 4 matrix, with x of size 1e-3 and the signs that open the mask exactly where
    grad K(m) and m disagree.
    """
    m, objective = worst_matrix(1), quadratic(seed, dimension=16)
    product = norm_gradient("nuclear", m, objective.shape, smoothing) * m
    x = 1e-3 * np.sign(m) * np.where(product < 0, -1.0, 1.0)
    dynamics = LionK(objective, decay, Mask(1e-5), alpha=0.01, norm="nuclear", smoothing=smoothing)
    path = integrate(dynamics, dynamics.start(x, m), 0.5, 501, tolerance)
    values = value(dynamics, points_of(dynamics, path))
    balance = float(np.max(np.abs(values - values[0] - path.work)))
    return {"weight_decay": decay, "rise": largest_rise(values), "tolerance": 2 * balance}
