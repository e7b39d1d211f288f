"""Table 1 measured: the Lyapunov function along paths of each optimizer, and along plain decay's as a control.

For a start, an objective and a level (layer, smoothing, integrator's tolerance), with H the Lyapunov function:

balance    max over t of |H(t) - H(0) - integral of the analytic dH/dt|: the integrator's error in H, measured
rise       the most that H rises above an earlier value
tolerance  what the integrator's error allows the rise to be: as no dH/dt is positive, 2 * balance, plus rounding
sharp      the same of the paper's own H, which may lie from the regularised one by lambda * d * layer / 2, and for
           Lion-K by the smoothing of K too: that gap is added to its tolerance
refinement max over t of |H(t) - H(t) of the finest level|
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cwd.runs import MetricsLog
from cwd.theory.dynamics import SGD, SGDM, Adam, Dynamics, LionK, Mask, Point
from cwd.theory.lyapunov import rate, sharp_gap, value
from cwd.theory.objectives import OBJECTIVES, Array, Objective
from cwd.theory.paths import Path, integrate, largest_rise, points_of
from cwd.theory.signs import study_signs
from cwd.theory.sliding import STARTS, compare_with_sliding

ROUNDING = 64 * float(np.finfo(np.float64).eps)  # relative, of an evaluation of H
THINNED = 101  # times of a path that are kept
MAKERS = {"sgd": SGD, "sgdm": SGDM, "lion": LionK, "muon": LionK, "adam": Adam}

Settings = dict[str, Any]
Level = list[Any]  # layer (None: no mask), smoothing, integrator's tolerance


def table1_settings(optimizer: str, constants: Settings, levels: list[Level], end: float) -> Settings:
    """The settings of one row at full size; `levels` from coarse to fine, paths until the time `end`."""
    return {
        "optimizer": optimizer,
        "constants": constants,
        "weight_decay": 0.5,
        "objectives": ["quadratic", "rosenbrock", "ripples", "logistic", "factorisation", "circle"],
        "levels": levels,
        "starts": 2,
        "spread": 1.5,  # standard deviation of x and m at the start
        "end": end,
        "points": 1001,
        "control_integrator": 1e-9,
        "seed": 0,
    }


def run_table1(settings: Settings, say: Callable[[str], None], log: MetricsLog) -> dict[str, Any]:
    """The check of one row of Table 1. Returns its summary, laid out as :mod:`cwd.theory.checks` says."""
    objectives = {}
    for name in settings["objectives"]:
        objectives[name] = _run_objective(settings, name, log)
        last = max(objectives[name]["levels"][-1]["starts"], key=lambda row: row["rise"])
        say(
            f"{name:<13} H falls by {last['drop']:.3g}, rises by {last['rise']:.1e} (allowed {last['tolerance']:.1e}); "
            f"with plain decay it rises by {objectives[name]['control']['rise']:.1e}"
        )
    summary = {"optimizer": settings["optimizer"], "objectives": objectives, "worst": _worst(objectives)}
    summary.update(_extras(settings, say))
    return summary


def _extras(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """What one optimizer has beside H: SGD its sliding mode; Muon the condition on K, and the mask of Algorithms 3 and
    5, which reads grad K(m) where Table 1's reads m; Adam the bound gamma <= 4 alpha, at it and beyond it.
    """
    levels: list[Level] = settings["levels"]
    extras: dict[str, Any] = {}
    match settings["optimizer"]:
        case "sgd":
            layers = [10.0**-power for power in (2, 3, 4, 5)]
            extras["sliding"] = {toy: _slide(settings, toy, layers) for toy in STARTS}
        case "muon":
            _, smoothing, tolerance = levels[-1]
            extras["signs"] = study_signs(settings["seed"], [1.0, 1.9, 2.1, 4.0, 8.0], smoothing / 30, tolerance / 10)
            extras["mask_reads_direction"] = _variant(settings, levels[1:], reads="direction")
        case "adam":
            extras["gamma_at_bound"] = _variant(settings, levels[-2:-1], gamma=4 * settings["constants"]["alpha"])
            extras["gamma_beyond_bound"] = _variant(settings, levels[-2:-1], gamma=16 * settings["constants"]["alpha"])
    for about, found in extras.items():
        if about not in ("sliding", "signs"):
            rises = ", ".join(f"{name} {rows[-1]['rise']:.1e}" for name, rows in found.items())
            say(f"{about}: H rises by {rises}")
    return extras


class Followed(NamedTuple):
    """A path, what follows from its states (n, d), and H and the paper's own H along it (n,)."""

    dynamics: Dynamics
    path: Path
    points: Point
    values: Array
    sharp: Array


def _run_objective(settings: Settings, name: str, log: MetricsLog) -> dict[str, Any]:
    objective = OBJECTIVES[name](settings["seed"])
    starts = _starts(settings, objective)
    finest = [_follow(settings, objective, settings["levels"][-1], *start) for start in starts]
    levels = []
    for level in settings["levels"][:-1]:
        found = [_follow(settings, objective, level, *start) for start in starts]
        levels.append(_level(level, found, finest))
    levels.append(_level(settings["levels"][-1], finest, finest))
    for number, one in enumerate(finest):
        _log_path(log, "lyapunov", name, number, one)
    return {
        "dimension": objective.dimension,
        "levels": levels,
        "ends": [_ends(one) for one in finest],
        "control": _control(settings, name, objective, starts, finest, log),
    }


def _level(level: Level, found: list[Followed], finest: list[Followed]) -> dict[str, Any]:
    rows = [_measure(one, reference.values) for one, reference in zip(found, finest, strict=True)]
    return {"layer": level[0], "smoothing": level[1], "integrator": level[2], "starts": rows}


def _ends(one: Followed) -> dict[str, float]:
    """How far the path has come towards grad f = 0, m = 0."""
    g, m = one.points.g, one.points.m
    norms = {"gradient_norm_at_start": g[0], "gradient_norm": g[-1], "momentum_norm": m[-1]}
    return {name: float(np.linalg.norm(vector)) for name, vector in norms.items()}


def _starts(settings: Settings, objective: Objective) -> list[tuple[Array, Array | None]]:
    """Random x; the first start has the optimizer's own first momentum, the others a random one."""
    generator = np.random.default_rng([settings["seed"], 1])
    draws = [
        settings["spread"] * generator.standard_normal((2, objective.dimension)) for _ in range(settings["starts"])
    ]
    return [(x, m if number else None) for number, (x, m) in enumerate(draws)]


def _dynamics(settings: Settings, objective: Objective, level: Level, mask: Mask, **more: Any) -> Dynamics:
    constants = {**settings["constants"], **more}
    if settings["optimizer"] in ("lion", "muon"):
        constants["smoothing"] = level[1]
    return MAKERS[settings["optimizer"]](objective, settings["weight_decay"], mask, **constants)


def _follow(settings: Settings, objective: Objective, level: Level, x: Array, m: Array | None, **more: Any) -> Followed:
    """The masked path of one level; without a mask if the layer is None."""
    dynamics = _dynamics(settings, objective, level, Mask(level[0]), **more)
    path = integrate(dynamics, dynamics.start(x, m), settings["end"], settings["points"], level[2])
    points = points_of(dynamics, path)
    return Followed(dynamics, path, points, value(dynamics, points), value(dynamics, points, sharp=True))


def _measure(one: Followed, reference: Array) -> dict[str, float]:
    """The numbers of one path; `reference` is H along the finest one."""
    balance, tolerance = _balance(one)
    selections = one.points.s
    return {
        "drop": float(one.values[0] - one.values[-1]),
        "rise": largest_rise(one.values),
        "tolerance": tolerance,
        "balance": balance,
        "sharp_rise": largest_rise(one.sharp),
        "sharp_tolerance": tolerance + sharp_gap(one.dynamics),
        "refinement": float(np.max(np.abs(one.values - reference))),
        "largest_rate": float(np.max(rate(one.dynamics, one.points))),
        "most_in_layer": int(np.max(np.sum((selections > 0) & (selections < 1), axis=1))),
        "mask_ratio": float(np.mean(selections)),
        "evaluations": one.path.evaluations,
    }


def _balance(one: Followed) -> tuple[float, float]:
    """The integrator's error in H, and the rise that it allows."""
    balance = float(np.max(np.abs(one.values - one.values[0] - one.path.work)))
    return balance, 2 * balance + ROUNDING * float(np.max(np.abs(one.values)))


def _control(
    settings: Settings, name: str, objective: Objective, starts: list[Any], finest: list[Followed], log: MetricsLog
) -> dict[str, Any]:
    """The analogous function of Remark 1 along plain decay: from the same starts, and from where the masked path
    ended.
    """
    _, smoothing, _ = settings["levels"][-1]
    begin = [*starts, *((one.path.states[-1, 0], None) for one in finest)]
    found = [_follow(settings, objective, [None, smoothing, settings["control_integrator"]], *one) for one in begin]
    for number, one in enumerate(found):
        _log_path(log, "control", name, number, one)
    rows = [{"rise": largest_rise(one.values), "tolerance": _balance(one)[1]} for one in found]
    return {
        "from_start": rows[: len(starts)],
        "from_end": rows[len(starts) :],
        "rise": max(row["rise"] for row in rows),
        "tolerance": max(row["tolerance"] for row in rows),
    }


def _log_path(log: MetricsLog, kind: str, name: str, start: int, one: Followed) -> None:
    """Keeps some of a path's times, for a figure."""
    for i in np.linspace(0, len(one.values) - 1, min(THINNED, len(one.values))).astype(int):
        h, sharp_h = float(one.values[i]), float(one.sharp[i])
        log.write(kind, int(i), objective=name, start=start, t=float(one.path.t[i]), h=h, sharp_h=sharp_h)


def _worst(objectives: dict[str, Any]) -> dict[str, float]:
    """Over the objectives and starts, at the finest level: ratios of at most 1 are within tolerance."""
    last = [row for one in objectives.values() for row in one["levels"][-1]["starts"]]
    controls = [one["control"] for one in objectives.values()]
    return {
        "rise": max(row["rise"] for row in last),
        "rise_over_tolerance": max(row["rise"] / row["tolerance"] for row in last),
        "sharp_rise_over_tolerance": max(row["sharp_rise"] / row["sharp_tolerance"] for row in last),
        "tolerance_over_drop": max(row["tolerance"] / row["drop"] for row in last),
        "largest_rate": max(row["largest_rate"] for row in last),
        "least_control_rise_over_tolerance": min(row["rise"] / row["tolerance"] for row in controls),
        "most_control_rise": max(row["rise"] for row in controls),
    }


def _slide(settings: Settings, toy: str, layers: list[float]) -> dict[str, Any]:
    objective = OBJECTIVES[toy](settings["seed"])
    flows = [_dynamics(settings, objective, [], Mask(width, "below")) for width in layers]
    return compare_with_sliding(toy, flows, 0.4, 1e-9)


def _variant(settings: Settings, levels: list[Level], **constants: Any) -> dict[str, Any]:
    """H along the paths of the same optimizer with other constants, from the first start."""
    result: dict[str, Any] = {}
    for name in settings["objectives"]:
        objective = OBJECTIVES[name](settings["seed"])
        start = _starts(settings, objective)[0]
        result[name] = []
        for level in levels:
            one = _follow(settings, objective, level, *start, **constants)
            found = {"rise": largest_rise(one.values), "tolerance": _balance(one)[1]}
            result[name].append({"layer": level[0], "smoothing": level[1], "integrator": level[2], **found})
    return result
