"""Theorem 1 measured: how fast Adam with cautious decay comes to stationarity  (CWD paper, Theorem 1 and Appendix E).

    (1/T) sum_t E[ ||grad f(x_t)||^2 + lambda ||(grad f(x_t) x_t)_+||_1 ]
        <= K1 / (eta T) + K2 / T + K3 eta + K4 sigma / sqrt(n_batch)

on a smooth function that is not convex, with known L and least value, by the library's AdamW in float64. A stochastic
gradient is the exact one plus the mean of n_batch independent vectors of entries +-sigma / sqrt(d): unbiased, of
variance sigma^2 / n_batch exactly, and bounded. eta = scale / sqrt(T).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats

from cwd.optim import AdamW
from cwd.runs import MetricsLog
from cwd.theory.lemmas import check_lemmas
from cwd.theory.objectives import SLOPE, Array, Objective, robust_data, robust_regression

Settings = dict[str, Any]


def theorem1_settings() -> Settings:
    """The settings at full size. A batch size of 0 stands for exact gradients."""
    decades = [32, 100, 316, 1000, 3162, 10_000, 31_623]
    return {
        "dimension": 10,
        "samples": 40,
        "sweeps": [{"eps": 1e-8, "horizons": decades}, {"eps": 0.1, "horizons": decades[:5]}],
        "batches": [1, 4, 16, 64, 256, 1024, 0],
        "seeds": 8,
        "spread": 2.0,  # standard deviation of the first x
        "scale": 1.0,
        "sigma": 1.0,
        "betas": [0.9, 0.99],
        "weight_decay": 0.1,
        "lemma_steps": 1000,
        "seed": 0,
    }


def constants(
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    lipschitz: float,
    dimension: int,
    largest_x: float,
    largest_g: float,
    f_gap: float,
) -> dict[str, float]:
    """C and K1 to K4 of Theorem 1.

    Args:
        largest_x, largest_g: R and G, bounds of the entries of x_t and of the stochastic gradients. G is raised to
            1 / (1 - beta1), as the theorem asks for.
        f_gap: f(x_1) minus the least value of f.
    """
    g = max(largest_g, 1 / (1 - beta1))
    c = ((1 - beta1) / (1 - beta2)) ** 0.5
    reach = g / eps + weight_decay * largest_x
    step = c + weight_decay * largest_x
    momentum = beta1 * dimension * (g + eps) / (1 - beta1)
    square = c * c + (weight_decay * largest_x) ** 2
    return {
        "C": c,
        "K1": (g + eps) * f_gap,
        "K2": momentum * g * reach,
        "K3": momentum * lipschitz * step * reach + lipschitz * dimension * square * (g + eps),
        "K4": dimension * (g + eps) / (1 + beta1) ** 0.5 * reach,
    }


def bound(k: dict[str, float], lr: float, steps: int, sigma: float, batch: int) -> float:
    """The right-hand side of Theorem 1. A batch of 0 has no noise."""
    noise = k["K4"] * sigma / batch**0.5 if batch else 0.0
    return k["K1"] / (lr * steps) + k["K2"] / steps + k["K3"] * lr + noise


def stationarity(x: Array, gradient: Array, weight_decay: float) -> Array:
    """||grad f||^2 + lambda ||(grad f x)_+||_1 of points (..., d): (...)."""
    return np.sum(gradient * gradient + weight_decay * np.maximum(gradient * x, 0.0), axis=-1)


def run_theorem1(settings: Settings, say: Callable[[str], None], log: MetricsLog) -> dict[str, Any]:
    """The check. Returns its summary, laid out as :mod:`cwd.theory.checks` says."""
    objective = robust_regression(settings["seed"], settings["dimension"], settings["samples"])
    sweeps = [_sweep(settings, objective, sweep, say, log) for sweep in settings["sweeps"]]
    rows = [row for sweep in sweeps for horizon in sweep["horizons"] for row in horizon["batches"]]
    return {
        "problem": {
            "dimension": settings["dimension"],
            "lipschitz": objective.lipschitz,
            "gradient_bound": gradient_bound(settings),
            "sigma": settings["sigma"],
        },
        "sweeps": sweeps,
        "largest_over_bound": max(row["over_bound"] for row in rows),
        "lemmas": check_lemmas(settings["seed"], settings["lemma_steps"]),
    }


def gradient_bound(settings: Settings) -> float:
    """No entry of a stochastic gradient is larger: max_i mean_j |a_ji| * max |phi'| + sigma / sqrt(d)."""
    inputs, _ = robust_data(settings["seed"], settings["dimension"], settings["samples"])
    return float(np.max(np.mean(np.abs(inputs), axis=0)) * SLOPE + settings["sigma"] / settings["dimension"] ** 0.5)


def _sweep(
    settings: Settings, objective: Objective, sweep: Settings, say: Callable[[str], None], log: MetricsLog
) -> dict[str, Any]:
    """Every number of steps T at one eps."""
    horizons, means = [], []
    for steps in sweep["horizons"]:
        lr = settings["scale"] / steps**0.5
        mean, largest_x, f_gap = _average(settings, objective, sweep["eps"], steps, lr)
        means.append(mean)
        k = _constants(settings, objective, sweep["eps"], largest_x, f_gap)
        rows = [_row(settings, k, lr, steps, *one) for one in zip(settings["batches"], mean.T, strict=True)]
        horizons.append({"T": steps, "lr": lr, "largest_x": largest_x, "f_gap": f_gap, **k, "batches": rows})
        log.write("rate", steps, eps=sweep["eps"], lr=lr, batches=settings["batches"], means=mean.tolist())
        say(
            f"eps {sweep['eps']:g}  T {steps:>5}  mean "
            + "  ".join(
                f"{row['mean']:.2e} ({'batch ' + str(row['batch']) if row['batch'] else 'exact'})"
                for row in (rows[0], rows[-1])
            )
        )
    table = np.array(means)  # (T, seeds, batches)
    return {"eps": sweep["eps"], "horizons": horizons, **_slopes(settings, sweep["horizons"], table)}


def _average(settings: Settings, objective: Objective, eps: float, steps: int, lr: float) -> tuple[Array, float, float]:
    """The mean stationarity measure over the steps, of every seed and batch size at once: (seeds, batches).

    Also the largest entry of any x_t, and the largest f(x_1) minus the least value of f.
    """
    generator = np.random.default_rng([settings["seed"], steps])
    shape = (settings["seeds"], len(settings["batches"]), settings["dimension"])
    first = settings["spread"] * np.random.default_rng(settings["seed"]).standard_normal((shape[0], 1, shape[2]))
    x = torch.tensor(np.broadcast_to(first, shape).copy(), requires_grad=True)
    decay, betas = settings["weight_decay"], tuple(settings["betas"])
    optimizer = AdamW([x], lr, betas, eps, decay, "cautious", compile=False)
    points = x.detach().numpy()  # shares x's memory
    total, largest = np.zeros(shape[:2]), 0.0
    for _ in range(steps):
        gradient = objective.gradient(points)
        total += stationarity(points, gradient, decay)
        largest = max(largest, float(np.max(np.abs(points))))
        x.grad = torch.from_numpy(gradient + draw_noise(generator, settings["batches"], shape, settings["sigma"]))
        optimizer.step()
    return total / steps, largest, float(np.max(objective.value(first))) - float(objective.minimum or 0.0)


def draw_noise(generator: np.random.Generator, batches: list[int], shape: tuple[int, int, int], sigma: float) -> Array:
    """The error of a stochastic gradient, (seeds, batches, d): the mean of n vectors of random signs times sigma /
    sqrt(d), for each batch size n; zero for n = 0.
    """
    sizes = np.array(batches)[None, :, None]
    count = np.maximum(sizes, 1)
    signs = 2 * generator.binomial(np.broadcast_to(count, shape), 0.5) / count - 1
    return sigma / shape[-1] ** 0.5 * signs * (sizes > 0)


def _constants(
    settings: Settings, objective: Objective, eps: float, largest_x: float, f_gap: float
) -> dict[str, float]:
    assert objective.lipschitz is not None
    return constants(
        beta1=settings["betas"][0],
        beta2=settings["betas"][1],
        eps=eps,
        weight_decay=settings["weight_decay"],
        lipschitz=objective.lipschitz,
        dimension=settings["dimension"],
        largest_x=largest_x,
        largest_g=gradient_bound(settings),
        f_gap=f_gap,
    )


def _row(settings: Settings, k: dict[str, float], lr: float, steps: int, batch: int, means: Array) -> dict[str, float]:
    """One batch size: the mean over seeds with its 95% interval, and the bound."""
    limit = bound(k, lr, steps, settings["sigma"], batch)
    mean, low, high = interval(means)
    return {"batch": batch, "mean": mean, "low": low, "high": high, "bound": limit, "over_bound": mean / limit}


def _slopes(settings: Settings, horizons: list[int], table: Array) -> dict[str, Any]:
    """Slopes of log(mean) against log T at each batch size, and against log(batch) at the largest T: a fit for each
    seed, and the 95% interval over seeds.
    """
    in_steps, batches = [], settings["batches"]
    for i, batch in enumerate(batches):
        mean, low, high = interval(slope(np.array(horizons, dtype=float), table[:, :, i]))
        in_steps.append({"batch": batch, "slope": mean, "low": low, "high": high})
    noisy = [i for i, batch in enumerate(batches) if batch]
    sizes = np.array([batches[i] for i in noisy], dtype=float)
    excess = table[-1][:, noisy].T
    mean, low, high = interval(slope(sizes, excess))
    return {"slope_in_T": in_steps, "slope_in_batch": {"T": horizons[-1], "slope": mean, "low": low, "high": high}}


def slope(x: Array, y: Array) -> Array:
    """Least-squares slopes of log y, (n, seeds), against log x, (n,): (seeds,)."""
    centred = np.log(x) - np.mean(np.log(x))
    return centred @ np.log(y) / np.sum(centred * centred)


def interval(values: Array) -> tuple[float, float, float]:
    """(mean, low, high) of values, with Student's 95% interval of the mean."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half
