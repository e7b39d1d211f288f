"""Figures 2 and 3: Adam, AdamW and Adam with cautious decay on two functions of the plane, by the library's AdamW.

The minimisers of the two functions are a circle and a parabola. Where cautious decay can end is known: the local Pareto
front, the minimisers near which no other one is nearer to zero in every coordinate, and within it the front, which no
other minimiser anywhere beats. AdamW ends, if at all, at a KKT point of f on the box |x|, |y| <= 1 / lambda: for both,
from the starts here, the corner (1 / lambda, 1 / lambda).

The paper names both functions with Figure 3, and none with Figure 2, and gives no constants; here the circle is called
figure2 and the parabola figure3, and the constants are in the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cwd.optim import AdamW
from cwd.runs import MetricsLog
from cwd.theory.objectives import OBJECTIVES, Array

CENTRE, TURN = np.array([3.0, 3.0]), 3.0
NAMES = {"none": "Adam", "decoupled": "AdamW", "cautious": "Adam + CWD"}


def toy_settings(toy: str) -> dict[str, Any]:
    """The settings at full size."""
    starts = [
        [5.0, 6.0],
        [6.0, 5.0],
        [4.0, 1.0],
        [1.0, 5.0],
        [0.5, 0.5],
        [-1.0, 4.0],
        [3.5, 3.2],
        [2.5, 4.5],
        [5.0, 2.0],
    ]
    runs = [["none", 1e-2], ["decoupled", 1e-2], ["cautious", 1e-2], ["cautious", 3e-3], ["cautious", 1e-3]]
    return {
        "toy": toy,
        "runs": runs,  # decay mode and learning rate
        "starts": starts,
        "betas": [0.9, 0.99],
        "eps": 1e-8,
        "weight_decay": 0.5,
        "steps": 20_000,
        "kept": 251,
    }


def run_toy(settings: dict[str, Any], say: Callable[[str], None], log: MetricsLog) -> dict[str, Any]:
    """The check of one figure. Returns its summary, laid out as :mod:`cwd.theory.checks` says."""
    runs = []
    for decay, lr in settings["runs"]:
        ends = _trajectories(settings, decay, lr, log)
        runs.append(_describe(settings, decay, lr, ends))
        worst = runs[-1]["worst"]
        say(f"{NAMES[decay]:<10} lr {lr:<6g} " + "  ".join(f"{name} {value:.2e}" for name, value in worst.items()))
    return {"toy": settings["toy"], "corner": [1 / settings["weight_decay"]] * 2, "runs": runs}


def _trajectories(settings: dict[str, Any], decay: str, lr: float, log: MetricsLog) -> Array:
    """Steps all starts together, which the elementwise rule does not see, and keeps some steps, more of the early ones.

    Returns:
        The last points, (starts, 2), float64.
    """
    objective, steps = OBJECTIVES[settings["toy"]](0), settings["steps"]
    even = np.linspace(0, 1, settings["kept"])
    kept = set(np.unique(np.rint(steps * even**2)).astype(int).tolist())
    x = torch.tensor(settings["starts"], dtype=torch.float64, requires_grad=True)
    optimizer = AdamW(
        [x], lr, tuple(settings["betas"]), settings["eps"], settings["weight_decay"], decay, compile=False
    )
    points = x.detach().numpy()  # shares x's memory
    for step in range(steps + 1):
        if step in kept:
            log.write("trajectory", step, decay=decay, lr=lr, points=points.tolist())
        if step < steps:
            x.grad = torch.from_numpy(objective.gradient(points))
            optimizer.step()
    return points.copy()


def _describe(settings: dict[str, Any], decay: str, lr: float, ends: Array) -> dict[str, Any]:
    """The end points, and their distances to what they are expected at; `worst` is the largest over the starts."""
    objective, corner = OBJECTIVES[settings["toy"]](0), 1 / settings["weight_decay"]
    distances = {
        "to_minimisers": distance_to_minimisers(settings["toy"], ends),
        "to_local_front": distance_to_front(settings["toy"], ends, local=True),
        "to_front": distance_to_front(settings["toy"], ends, local=False),
        "to_corner": np.linalg.norm(ends - corner, axis=1),
    }
    wanted = {"none": ["to_minimisers"], "decoupled": ["to_corner"], "cautious": ["to_minimisers", "to_local_front"]}
    return {
        "decay": decay,
        "lr": lr,
        "starts": settings["starts"],
        "ends": ends.tolist(),
        "f": objective.value(ends).tolist(),
        **{name: values.tolist() for name, values in distances.items()},
        "worst": {name: float(np.max(distances[name])) for name in wanted[decay]},
        "nearest_local_front_only": int(np.sum(distances["to_front"] > distances["to_local_front"])),
    }


def distance_to_minimisers(toy: str, points: Array) -> Array:
    """Distance of points (n, 2) from the curve on which f = 0: (n,)."""
    if toy == "circle":
        return np.abs(np.linalg.norm(points - CENTRE, axis=1) - 1)
    return np.array([_to_parabola(point, -np.inf, np.inf) for point in points])


def distance_to_front(toy: str, points: Array, local: bool) -> Array:
    """Distance of points (n, 2) from the Pareto front: (n,).

    The circle's front is its arc with x, y <= 3; its local front has the arc with x, y >= 3 too, on which a step that
    brings one coordinate nearer to zero takes the other away from it. The parabola's, local or not, is its part with
    0 <= x <= 3.
    """
    if toy == "parabola":
        return np.array([_to_parabola(point, 0.0, TURN) for point in points])
    front = _to_arc(points, np.pi)
    return np.minimum(front, _to_arc(points, 0.0)) if local else front


def _to_arc(points: Array, begin: float) -> Array:
    """Distance from the quarter of the circle from the angle `begin` on."""
    offset = points - CENTRE
    angle = np.mod(np.arctan2(offset[:, 1], offset[:, 0]) - begin, 2 * np.pi)
    tips = [CENTRE + np.array([np.cos(end), np.sin(end)]) for end in (begin, begin + np.pi / 2)]
    outside = np.min([np.linalg.norm(points - tip, axis=1) for tip in tips], axis=0)
    return np.where(angle <= np.pi / 2, np.abs(np.linalg.norm(offset, axis=1) - 1), outside)


def _to_parabola(point: Array, low: float, high: float) -> float:
    """Distance of a point (2,) from the part low <= x <= high of y = 3 + (x - 3)^2.

    The nearest point is an end, or where 2 t^3 + (1 - 2 b) t - a = 0, with t = x - 3 and (a, b) = point - (3, 3).
    """
    a, b = point - CENTRE
    roots = np.roots([2.0, 0.0, 1 - 2 * b, -a])
    candidates = np.append(
        roots[np.abs(roots.imag) < 1e-9].real + TURN, [end for end in (low, high) if np.isfinite(end)]
    )
    x = np.clip(candidates, low, high)
    return float(np.min(np.hypot(x - point[0], TURN + (x - TURN) ** 2 - point[1])))
