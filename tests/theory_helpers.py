"""The paper's dynamics written out with the indicator itself: a reference that knows nothing of layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cwd.theory.objectives import Array, Objective

LAMBDA = 0.5
ALPHA, GAMMA, BETA, EPS = 1.0, 0.3, 0.7, 1e-2


def written_out(name: str, f: Objective, masked: bool = True) -> Callable[[float, Array], Array]:
    """The right-hand side of Table 1 on a flat state, for scipy."""

    def indicator(product: Array) -> Array:
        return np.where(product >= 0, 1.0, 0.0) if masked else np.ones_like(product)

    def sgd(t: float, z: Array) -> Array:
        g = f.gradient(z)
        return -g - LAMBDA * indicator(g * z) * z

    def sgdm(t: float, z: Array) -> Array:
        x, m = np.split(z, 2)
        return np.concatenate([-m - LAMBDA * indicator(m * x) * x, BETA * (f.gradient(x) - m)])

    def lion(t: float, z: Array) -> Array:
        x, m = np.split(z, 2)
        return np.concatenate([np.sign(m) - LAMBDA * indicator(-m * x) * x, -ALPHA * f.gradient(x) - GAMMA * m])

    def adam(t: float, z: Array) -> Array:
        x, m, v = np.split(z, 3)
        g, a, c = f.gradient(x), 1 / (1 - np.exp(-ALPHA * t)), 1 / (1 - np.exp(-GAMMA * t))
        u = a * m / (np.sqrt(c * v) + EPS)
        return np.concatenate([-u - LAMBDA * indicator(m * x) * x, ALPHA * (g - m), GAMMA * (g * g - v)])

    return {"sgd": sgd, "sgdm": sgdm, "lion": lion, "adam": adam}[name]
