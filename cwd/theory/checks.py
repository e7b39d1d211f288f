"""The checks of the theory as runs: an identity, a key, a folder, metrics, a summary. Imports nothing heavy.

A check's identity is ``{"theory": {"format": ..., "check": name, "settings": {...}}}``, which no training run has; it
has no data. It takes seconds to a minute, so one that was stopped starts again; one that is done is returned.

Every summary holds ``check``, ``seconds``, and numbers that were computed, never a verdict:

table1_*    cwd.theory.table1 says what the numbers of a level are.
            objectives.NAME.dimension
            objectives.NAME.levels[i]: layer, smoothing, integrator; the last level is the finest
            objectives.NAME.levels[i].starts[start]: drop, rise, tolerance, balance, sharp_rise, sharp_tolerance,
                refinement, largest_rate, most_in_layer (coordinates that are in the layer at one time, at most),
                mask_ratio (mean of s), evaluations (of the right-hand side)
            objectives.NAME.ends[start]: gradient_norm_at_start, gradient_norm, momentum_norm
            objectives.NAME.control: from_start[start], from_end[start]: rise, tolerance; rise and tolerance, their
                largest
            worst: over objectives and starts at the finest level: rise, rise_over_tolerance, sharp_rise_over_tolerance,
                tolerance_over_drop, largest_rate, least_control_rise_over_tolerance, most_control_rise
            table1_sgd: sliding.TOY: start, end, length of the exact sliding path; layers[i]: layer, distance from it,
                largest_f, rise
            table1_muon: signs.random[i], signs.worst[i]: shape, opposite_signs (share of the entries), conflict,
                bound; signs.gamma; signs.paths[i]: weight_decay, rise, tolerance.
                mask_reads_direction.NAME[i]: layer, smoothing, integrator, rise, tolerance
            table1_adam: gamma_at_bound.NAME[0], gamma_beyond_bound.NAME[0]: as mask_reads_direction
            metrics: lines "lyapunov" and "control": objective, start, t, h, sharp_h
figure2, figure3
            toy, corner; runs[i]: decay, lr; starts, ends, f, to_minimisers, to_local_front, to_front, to_corner, one
                for each start; worst: the largest of the distances that are expected to be small;
                nearest_local_front_only: ends that are nearer to the rest of the local front than to the front
            metrics: lines "trajectory": decay, lr, points, one for each start
theorem1    problem: dimension, lipschitz, gradient_bound, sigma
            sweeps[i]: eps; horizons[j]: T, lr, largest_x, f_gap, C, K1, K2, K3, K4; batches[k]: batch (0: exact
                gradients), mean, low, high (95% over seeds), bound, over_bound (mean / bound)
            sweeps[i].slope_in_T[k]: batch, slope, low, high;  sweeps[i].slope_in_batch: T, slope, low, high
            largest_over_bound
            lemmas.update[i]: betas, C, random_over_C, worst_over_C;  lemmas.mask_violations of lemmas.mask_checked
            metrics: lines "rate": eps, lr, batches, means (seeds, batches)
appendix_c  weight_decay; objectives.NAME.gradient_norm_at_start; objectives.NAME.OPTIMIZER: problem (penalty, box,
                operator); solver: residual, f, gradient_norm, largest_entry, operator_norm; runs[i]: steps; decoupled
                and cautious: distance from the solver's solution, residual, and the same four
            metrics: lines "end": objective, optimizer, decay, x
"""

from __future__ import annotations

import functools
import importlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.errors import UserError, nearest
from cwd.runs import MetricsLog, Record

FORMAT = 1  # raised when the same settings come to mean other numbers
NO_DATA = {"fingerprint": "none"}
LEVELS = [[1e-2, 0.0, 1e-5], [1e-3, 0.0, 1e-7], [1e-4, 0.0, 1e-9]]  # layer, smoothing, integrator's tolerance
LION_LEVELS = [[1e-2, 3e-2, 1e-5], [3e-3, 1e-2, 1e-6], [1e-3, 3e-3, 1e-8]]  # K's kink, smoothed, makes them dear


@dataclass(frozen=True)
class Check:
    """What a check is: its functions are named, and imported when they are called."""

    about: str
    module: str
    settings_of: str
    run: str
    arguments: tuple[Any, ...] = ()

    def settings(self) -> dict[str, Any]:
        """The settings at full size, plain nested data."""
        return self._function(self.settings_of)(*self.arguments)

    def perform(self, settings: dict[str, Any], say: Callable[[str], None], log: MetricsLog) -> dict[str, Any]:
        """Computes the summary."""
        return self._function(self.run)(settings, say, log)

    def _function(self, name: str) -> Callable[..., Any]:
        return getattr(importlib.import_module(f"cwd.theory.{self.module}"), name)


_row = functools.partial(Check, module="table1", settings_of="table1_settings", run="run_table1")
_toy = functools.partial(Check, module="toys", settings_of="toy_settings", run="run_toy")

_CHECKS = {
    "table1_sgd": _row("f along SGD + CWD, and its sliding mode", arguments=("sgd", {}, LEVELS, 10.0)),
    "table1_sgdm": _row("H along SGD with momentum + CWD", arguments=("sgdm", {"beta": 1.0}, LEVELS, 10.0)),
    "table1_lion": _row(
        "H along Lion + CWD, K the smoothed l1 norm",
        arguments=("lion", {"alpha": 1.0, "gamma": 1.0, "norm": "l1"}, LION_LEVELS, 6.0),
    ),
    "table1_muon": _row(
        "H along Muon + CWD, K the smoothed nuclear norm, and where the condition on K fails",
        arguments=("muon", {"alpha": 1.0, "gamma": 1.0, "norm": "nuclear"}, LION_LEVELS, 10.0),
    ),
    "table1_adam": _row(
        "H along Adam + CWD, and at and beyond gamma = 4 alpha",
        arguments=("adam", {"alpha": 1.0, "gamma": 0.1, "eps": 1e-2}, LEVELS, 10.0),
    ),
    "figure2": _toy("Adam, AdamW, Adam + CWD on the toy whose minimisers are a circle", arguments=("circle",)),
    "figure3": _toy("Adam, AdamW, Adam + CWD on the toy whose minimisers are a parabola", arguments=("parabola",)),
    "theorem1": Check(
        "the convergence rate of Adam + CWD, its bound and its lemmas", "rate", "theorem1_settings", "run_theorem1"
    ),
    "appendix_c": Check(
        "where decoupled and cautious decay lead: KKT points and stationary points",
        "fixed_points",
        "appendix_c_settings",
        "run_appendix_c",
    ),
}
CHECKS: dict[str, str] = {name: check.about for name, check in _CHECKS.items()}


def run_check(
    name: str,
    root: Path | str,
    say: Callable[[str], None] = lambda text: None,
    settings: dict[str, Any] | None = None,
) -> Record:
    """Runs a check, or returns its record at once if it is done.

    Args:
        name: one of CHECKS.
        root: the runs folder.
        say: gets a line of progress now and then.
        settings: values in the place of those at full size; it is then another run.

    Raises:
        UserError: an unknown name or setting, a folder that cannot be written, or another process is at it (Busy).
    """
    identity = check_identity(name, settings)
    record = Record.create(Path(root), identity, NO_DATA, identity)
    if record.summary is None:
        with record.lock():
            if record.summary is None:  # nor has the process that we waited for
                _perform(_CHECKS[name], record, say)
    return record


def check_identity(name: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the run's key is made of, besides ``NO_DATA``. Arguments and errors as for :func:`run_check`."""
    if name not in _CHECKS:
        raise UserError(f"{name}: no such check{nearest(name, CHECKS)}; allowed are {', '.join(CHECKS)}")
    full = _CHECKS[name].settings()
    for key in settings or {}:
        if key not in full:
            raise UserError(f"{name}: no such setting {key}{nearest(key, full)}; allowed are {', '.join(full)}")
    return {"theory": {"format": FORMAT, "check": name, "settings": {**full, **(settings or {})}}}


def _perform(check: Check, record: Record, say: Callable[[str], None]) -> None:
    import torch

    from cwd.runs.environment import describe_environment

    theory, began = record.config["theory"], time.perf_counter()
    record.metrics_file.unlink(missing_ok=True)  # of a check that was stopped
    record.set_status("running", 0)
    record.add_environment(describe_environment(torch.device("cpu"), 1))
    log = MetricsLog(record.metrics_file)
    try:
        summary = check.perform(theory["settings"], say, log)
        log.sync()
        record.finish({"check": theory["check"], "seconds": time.perf_counter() - began, **summary}, 0)
    except Exception:
        record.set_status("failed", 0, message=traceback.format_exc())
        raise
    finally:
        log.close()
