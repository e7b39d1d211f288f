"""Objectives of the theory checks: plain numpy in float64, value and gradient of many points at once.

Points are arrays of shape (..., d). The random ones are made from a seed by numpy's PCG64, so that a seed names the
same function everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

STEEPEST = 2.0  # largest |phi''| of phi(r) = r^2 / (1 + r^2), at r = 0
SLOPE = 3**1.5 / 8  # largest |phi'|, at r = 1 / sqrt(3)


@dataclass(frozen=True)
class Objective:
    """A function f of d variables, differentiable and bounded below.

    Attributes:
        value: (..., d) -> (...).
        gradient: (..., d) -> (..., d).
        dimension: d.
        shape: (rows, columns) with rows * columns = d, rows >= columns: the variables as a matrix, for the nuclear
            norm.
        lipschitz: a Lipschitz constant L of the gradient, None if there is none or it is not known.
        minimum: the least value, None if not known in closed form.
    """

    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    dimension: int
    shape: tuple[int, int]
    lipschitz: float | None = None
    minimum: float | None = None


def quadratic(seed: int, dimension: int = 50, condition: float = 100.0) -> Objective:
    """1/2 (x - x*)^T A (x - x*): eigenvalues from 10 / condition to 10, evenly spaced in their logarithm, random axes,
    x* from N(0, 1).
    """
    generator = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(generator.standard_normal((dimension, dimension)))
    matrix = (axes * np.geomspace(10.0 / condition, 10.0, dimension)) @ axes.T
    minimiser = generator.standard_normal(dimension)

    def value(x: Array) -> Array:
        return 0.5 * np.sum((x - minimiser) * ((x - minimiser) @ matrix), axis=-1)

    def gradient(x: Array) -> Array:
        return (x - minimiser) @ matrix

    return Objective(value, gradient, dimension, _shape(dimension), lipschitz=10.0, minimum=0.0)


def rosenbrock(seed: int, dimension: int = 4, steepness: float = 10.0) -> Objective:
    """Rosenbrock's chain: the sum over i of steepness * (x_{i+1} - x_i^2)^2 + (1 - x_i)^2. The seed has no effect."""

    def value(x: Array) -> Array:
        return np.sum(steepness * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2, axis=-1)

    def gradient(x: Array) -> Array:
        bend = x[..., 1:] - x[..., :-1] ** 2
        result = np.zeros_like(x)
        result[..., 1:] = 2 * steepness * bend
        result[..., :-1] -= 4 * steepness * bend * x[..., :-1] + 2 * (1 - x[..., :-1])
        return result

    return Objective(value, gradient, dimension, _shape(dimension), minimum=0.0)


def ripples(seed: int, dimension: int = 12, waves: int = 24) -> Objective:
    """1/20 ||x||^2 + the sum of `waves` cosines of random directions (norm 2) and phases: many minima and saddles."""
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((waves, dimension))
    directions *= 2 / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = generator.uniform(0, 2 * np.pi, waves)

    def value(x: Array) -> Array:
        return 0.05 * np.sum(x * x, axis=-1) + np.sum(np.cos(x @ directions.T + phases), axis=-1)

    def gradient(x: Array) -> Array:
        return 0.1 * x - np.sin(x @ directions.T + phases) @ directions

    bound = 0.1 + float(np.linalg.norm(directions, 2)) ** 2
    return Objective(value, gradient, dimension, _shape(dimension), lipschitz=bound)


def logistic(seed: int, dimension: int = 20, samples: int = 80) -> Objective:
    """Mean logistic loss of `samples` random inputs, a quarter of the labels flipped so that a minimiser exists; scaled
    by 10.
    """
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((samples, dimension))
    labels = np.sign(inputs @ generator.standard_normal(dimension))
    labels[: samples // 4] *= -1
    signed = inputs * labels[:, None]

    def value(x: Array) -> Array:
        return 10 * np.mean(np.logaddexp(0.0, -(x @ signed.T)), axis=-1)

    def gradient(x: Array) -> Array:
        return -10 / samples * expit(-(x @ signed.T)) @ signed

    bound = 2.5 / samples * float(np.linalg.norm(signed, 2)) ** 2
    return Objective(value, gradient, dimension, _shape(dimension), lipschitz=bound)


def factorisation(seed: int, rows: int = 6, columns: int = 5, rank: int = 2) -> Objective:
    """1/2 ||U V^T - A||_F^2 for a random A of that rank: not convex, and its minimisers are a manifold.

    x holds U (rows, rank), then V (columns, rank); d = (rows + columns) * rank.
    """
    generator = np.random.default_rng(seed)
    left, right = (generator.standard_normal((size, rank)) for size in (rows, columns))
    target, cut, dimension = left @ right.T, rows * rank, (rows + columns) * rank

    def factors(x: Array) -> tuple[Array, Array, Array]:
        u = x[..., :cut].reshape(*x.shape[:-1], rows, rank)
        v = x[..., cut:].reshape(*x.shape[:-1], columns, rank)
        return u, v, u @ np.swapaxes(v, -1, -2) - target

    def value(x: Array) -> Array:
        residual = factors(x)[2]
        return 0.5 * np.sum(residual * residual, axis=(-1, -2))

    def gradient(x: Array) -> Array:
        u, v, residual = factors(x)
        parts = (residual @ v, np.swapaxes(residual, -1, -2) @ u)
        return np.concatenate([part.reshape(*x.shape[:-1], -1) for part in parts], axis=-1)

    return Objective(value, gradient, dimension, (rows + columns, rank), minimum=0.0)


def circle(seed: int = 0) -> Objective:
    """((y - 3)^2 + (x - 3)^2 - 1)^2, a toy of the paper's Figures 2 and 3. The seed has no effect."""

    def value(p: Array) -> Array:
        return (np.sum((p - 3) ** 2, axis=-1) - 1) ** 2

    def gradient(p: Array) -> Array:
        return 4 * (np.sum((p - 3) ** 2, axis=-1, keepdims=True) - 1) * (p - 3)

    return Objective(value, gradient, 2, (2, 1), minimum=0.0)


def parabola(seed: int = 0) -> Objective:
    """(y - 3 - (x - 3)^2)^2, the other toy of the paper's Figures 2 and 3. The seed has no effect."""

    def value(p: Array) -> Array:
        return (p[..., 1] - 3 - (p[..., 0] - 3) ** 2) ** 2

    def gradient(p: Array) -> Array:
        gap = p[..., 1] - 3 - (p[..., 0] - 3) ** 2
        return np.stack([-4 * gap * (p[..., 0] - 3), 2 * gap], axis=-1)

    return Objective(value, gradient, 2, (2, 1), minimum=0.0)


def robust_regression(seed: int, dimension: int = 10, samples: int = 40) -> Objective:
    """Mean of phi(a_j . (x - x*)) with phi(r) = r^2 / (1 + r^2) (Geman and McClure): smooth, not convex, least value 0.

    The rows a_j are scaled so that L = 2 * lambda_max(A^T A / samples) = 1; x* from N(0, 1).
    """
    inputs, minimiser = robust_data(seed, dimension, samples)

    def value(x: Array) -> Array:
        squares = ((x - minimiser) @ inputs.T) ** 2
        return np.mean(squares / (1 + squares), axis=-1)

    def gradient(x: Array) -> Array:
        residual = (x - minimiser) @ inputs.T
        return (2 * residual / (1 + residual * residual) ** 2) @ inputs / samples

    return Objective(value, gradient, dimension, _shape(dimension), lipschitz=1.0, minimum=0.0)


def robust_data(seed: int, dimension: int, samples: int) -> tuple[Array, Array]:
    """The rows a_j (samples, d) and x* (d,) of :func:`robust_regression`."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((samples, dimension))
    inputs *= np.sqrt(samples / STEEPEST) / np.linalg.norm(inputs, 2)
    return inputs, generator.standard_normal(dimension)


def _shape(dimension: int) -> tuple[int, int]:
    """The most nearly square (rows, columns) with that many entries, rows >= columns."""
    columns = max(n for n in range(1, int(dimension**0.5) + 1) if dimension % n == 0)
    return dimension // columns, columns


OBJECTIVES: dict[str, Callable[[int], Objective]] = {
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "ripples": ripples,
    "logistic": logistic,
    "factorisation": factorisation,
    "circle": circle,
    "parabola": parabola,
    "robust_regression": robust_regression,
}
