"""The convex functions K of Lion-K  (CWD paper, Algorithm 3): the l1 norm (Lion) and the nuclear norm (Muon), smoothed.

The gradients sgn(m) and U V^T jump. With delta > 0, sqrt(s^2 + delta^2) - delta takes the place of |s|, for entries
(l1) or singular values (nuclear). This K is convex, smooth, least at 0 alone, and within delta times the number of
entries or singular values below the norm; it is itself one of the K that Table 1 is about. delta = 0 is the norm, with
the gradient's least element (0 at 0) as in sgn(0) = 0.
"""

from __future__ import annotations

import numpy as np

from cwd.theory.objectives import Array

NORMS = ("l1", "nuclear")


def norm_value(norm: str, m: Array, shape: tuple[int, int], smoothing: float) -> Array:
    """K(m) for m of shape (..., d), read as matrices of `shape` (rows, columns) for the nuclear norm: (...)."""
    sizes = np.abs(m) if norm == "l1" else np.linalg.svd(m.reshape(*m.shape[:-1], *shape), compute_uv=False)
    return np.sum(np.sqrt(sizes * sizes + smoothing * smoothing) - smoothing, axis=-1)


def norm_gradient(norm: str, m: Array, shape: tuple[int, int], smoothing: float) -> Array:
    """grad K(m), (..., d): m / sqrt(m^2 + delta^2), or U diag(s / sqrt(s^2 + delta^2)) V^T of the singular values s."""
    if norm == "l1":
        return m / np.sqrt(m * m + smoothing * smoothing) if smoothing else np.sign(m)
    left, sizes, right = np.linalg.svd(m.reshape(*m.shape[:-1], *shape), full_matrices=False)
    scaled = sizes / np.sqrt(sizes * sizes + smoothing * smoothing) if smoothing else np.sign(sizes)
    return ((left * scaled[..., None, :]) @ right).reshape(m.shape)


def norm_gap(norm: str, shape: tuple[int, int], smoothing: float) -> float:
    """How far the smoothed K can lie below the norm: delta times the number of entries or of singular values."""
    return smoothing * (shape[0] * shape[1] if norm == "l1" else min(shape))
