"""Where plain decay leads, and where cautious decay does  (CWD paper, section 2.2 and Appendix C), with the library's
optimizers in float64 and a rate that falls to nearly nothing.

Decoupled decay ends at the solution of another problem, which other solvers solve here too:

SGD     min f + lambda / 2 ||x||^2                       L-BFGS
Lion    min f subject to ||x||_inf <= 1 / lambda         L-BFGS-B
AdamW   the same (a KKT point, if it converges)          L-BFGS-B
Muon    min f subject to ||X||_op <= 1 / lambda          accelerated projected gradient

Cautious decay ends where grad f = 0. The objectives are convex, so that the solutions are unique.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from cwd.optim import SGD, AdamW, Lion, Muon
from cwd.runs import MetricsLog
from cwd.theory.objectives import Array, Objective, logistic, quadratic

EXACT_SIGN: dict[str, Any] = {
    "ns_coefficients": (1.5, -0.5, 0.0),
    "ns_steps": 40,
    "adjust_lr_fn": "none",
    "nesterov": False,
}
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda x, **more: SGD(x, momentum=0.9, compile=False, **more),
    "lion": lambda x, **more: Lion(x, betas=(0.9, 0.99), compile=False, **more),
    "adamw": lambda x, **more: AdamW(x, betas=(0.9, 0.95), compile=False, **more),
    # Newton-Schulz's own coefficients converge to U V^T; the library's default ones stop near it, and are the last row.
    "muon": lambda x, **more: Muon(x, momentum=0.9, **EXACT_SIGN, **more),
    "muon_default": lambda x, **more: Muon(x, momentum=0.9, adjust_lr_fn="none", **more),
}
CONSTRAINTS = {"sgd": "penalty", "lion": "box", "adamw": "box", "muon": "operator", "muon_default": "operator"}


def appendix_c_settings() -> dict[str, Any]:
    """The settings at full size."""
    return {
        "objectives": ["quadratic", "logistic"],
        "dimension": 12,
        "condition": 10.0,
        "optimizers": list(MAKERS),
        "weight_decay": 2.0,
        "lr": [0.05, 1e-7],  # first and last; geometric between
        "steps": [1000, 4000],  # of a short and a long run, to see what falls
        "seed": 0,
    }


def run_appendix_c(settings: dict[str, Any], say: Callable[[str], None], log: MetricsLog) -> dict[str, Any]:
    """The check. Returns its summary, laid out as :mod:`cwd.theory.checks` says."""
    result: dict[str, Any] = {}
    for name in settings["objectives"]:
        objective = make_objective(settings, name)
        result[name] = {"gradient_norm_at_start": float(np.linalg.norm(objective.gradient(_first(settings))))}
        for optimizer in settings["optimizers"]:
            row = _compare(settings, objective, name, optimizer, log)
            result[name][optimizer] = row
            last = row["runs"][-1]
            say(
                f"{name:<10} {optimizer:<13} decoupled: {last['decoupled']['distance']:.1e} from the solution, "
                f"|grad f| {last['decoupled']['gradient_norm']:.1e}; cautious: {last['cautious']['gradient_norm']:.1e}"
            )
    return {"weight_decay": settings["weight_decay"], "objectives": result}


def make_objective(settings: dict[str, Any], name: str) -> Objective:
    """The objective of that name."""
    if name == "quadratic":
        return quadratic(settings["seed"], settings["dimension"], settings["condition"])
    return logistic(settings["seed"], settings["dimension"])


def _first(settings: dict[str, Any]) -> Array:
    return np.random.default_rng([settings["seed"], 1]).standard_normal(settings["dimension"])


def _compare(
    settings: dict[str, Any], objective: Objective, name: str, optimizer: str, log: MetricsLog
) -> dict[str, Any]:
    kind, decay = CONSTRAINTS[optimizer], settings["weight_decay"]
    solution = solve(objective, kind, decay)
    runs = []
    for steps in settings["steps"]:
        row: dict[str, Any] = {"steps": steps}
        for mode in ("decoupled", "cautious"):
            end = _train(settings, objective, optimizer, mode, steps)
            log.write("end", steps, objective=name, optimizer=optimizer, decay=mode, x=end.tolist())
            row[mode] = {
                "distance": float(np.linalg.norm(end - solution)),
                "residual": residual(objective, kind, decay, end),
                **_norms(objective, end),
            }
        runs.append(row)
    solver = {"residual": residual(objective, kind, decay, solution), **_norms(objective, solution)}
    return {"problem": kind, "solver": solver, "runs": runs}


def _norms(objective: Objective, x: Array) -> dict[str, float]:
    return {
        "f": float(objective.value(x)),
        "gradient_norm": float(np.linalg.norm(objective.gradient(x))),
        "largest_entry": float(np.max(np.abs(x))),
        "operator_norm": float(np.linalg.norm(x.reshape(objective.shape), 2)),
    }


def _train(settings: dict[str, Any], objective: Objective, optimizer: str, decay: str, steps: int) -> Array:
    """The last x, (d,)."""
    x = torch.from_numpy(_first(settings).reshape(objective.shape)).requires_grad_()
    stepper = MAKERS[optimizer]([x], lr=0.0, weight_decay=settings["weight_decay"], decay=decay)
    points = x.detach().numpy()  # shares x's memory
    first, last = settings["lr"]
    for lr in np.geomspace(first, last, steps):
        stepper.param_groups[0]["lr"] = float(lr)
        x.grad = torch.from_numpy(objective.gradient(points.reshape(-1)).reshape(objective.shape))
        stepper.step()
    return points.reshape(-1).copy()


def solve(objective: Objective, kind: str, weight_decay: float) -> Array:
    """The solution (d,) of the problem that decoupled decay is said to solve: "penalty", "box" or "operator"."""
    start = np.zeros(objective.dimension)
    if kind == "operator":
        return _projected_gradient(objective, weight_decay, 20_000)
    penalty = weight_decay if kind == "penalty" else 0.0
    limits = [(-1 / weight_decay, 1 / weight_decay)] * start.size if kind == "box" else None
    found = minimize(
        lambda x: float(objective.value(x)) + 0.5 * penalty * float(x @ x),
        start,
        jac=lambda x: objective.gradient(x) + penalty * x,
        method="L-BFGS-B",
        bounds=limits,
        options={"maxiter": 10_000, "ftol": 0.0, "gtol": 1e-12},
    )
    return found.x


def _projected_gradient(objective: Objective, weight_decay: float, steps: int) -> Array:
    """Nesterov's accelerated projected gradient on the ball of the operator norm, until it stands still."""
    assert objective.lipschitz is not None
    x = ahead = np.zeros(objective.dimension)
    momentum = 1.0
    for _ in range(steps):
        after = project(ahead - objective.gradient(ahead) / objective.lipschitz, "operator", weight_decay, objective)
        following = (1 + (1 + 4 * momentum * momentum) ** 0.5) / 2
        ahead = after + (momentum - 1) / following * (after - x)
        if np.linalg.norm(after - x) < 1e-15:
            break
        x, momentum = after, following
    return x


def project(x: Array, kind: str, weight_decay: float, objective: Objective) -> Array:
    """The nearest point (d,) of the constraint: entries, or singular values, of at most 1 / lambda."""
    limit = 1 / weight_decay
    if kind == "box":
        return np.clip(x, -limit, limit)
    left, sizes, right = np.linalg.svd(x.reshape(objective.shape), full_matrices=False)
    return ((left * np.minimum(sizes, limit)) @ right).reshape(-1)


def residual(objective: Objective, kind: str, weight_decay: float, x: Array) -> float:
    """How far x is from a KKT point, where it is 0: ||grad f + lambda x||, or ||x - P(x - grad f)||."""
    g = objective.gradient(x)
    if kind == "penalty":
        return float(np.linalg.norm(g + weight_decay * x))
    return float(np.linalg.norm(x - project(x - g, kind, weight_decay, objective)))
