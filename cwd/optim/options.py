"""What every rule's group may hold beside the rule's own hyperparameters, and the checks."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypedDict

import torch

from cwd.optim.decay import MODES, SCHEDULES
from cwd.optim.directions import RULES, is_number
from cwd.optim.slots import shares_of


class Options(TypedDict, total=False):
    """Options of all native optimizers. All but the last three may be set for each group by itself.

    Attributes:
        decay_schedule: of lambda: "constant"; "corrected", times lr / lr_max (AdamC, arXiv 2506.02285); "linear" or
            "cosine", to zero over decay_steps updates.
        decay_steps: updates, > 0; for linear and cosine.
        lr_max: of "corrected"; default the group's lr when it is added.
        anchor: what the decay goes towards: None (zero), a number, or "initial": the parameter at its first step, kept
            in the state as "anchor", which may be set before.
        state_dtype: dtype of the rule's buffers: torch.float32, torch.bfloat16, or None, float32 for low-precision
            parameters and the parameter's own otherwise.
        stochastic_rounding: round what is stored as bfloat16, parameters and state, up or down by chance.
        maximize: ascend instead of descend.
        seed: of the random mode and of stochastic rounding.
        compile: compile the step: True, False, or None, which does so from two million elements on.
        flat: keep parameters, gradients and state of a group in one buffer each (see cwd.optim.RuleOptimizer).
    """

    decay_schedule: str
    decay_steps: int | None
    lr_max: float | None
    anchor: float | str | None
    state_dtype: torch.dtype | None
    stochastic_rounding: bool
    maximize: bool
    seed: int
    compile: bool | None
    flat: bool


COMMON: dict[str, Any] = {
    "weight_decay": 0.0,
    "decay": "cautious",
    "decay_schedule": "constant",
    "decay_steps": None,
    "lr_max": None,
    "anchor": None,
    "state_dtype": None,
    "stochastic_rounding": False,
    "maximize": False,
}
STATE_DTYPES = (None, torch.float32, torch.bfloat16, torch.float64)
# Keys that others put into groups: torch's own, schedulers, the names of stock optimizers' options.
FOREIGN = {"params", "param_names", "lr", "rule", "name", "initial_lr", "max_lr", "min_lr", "swa_lr", "lr_multiple"}
FOREIGN |= {"lr_scale", "base_momentum", "max_momentum", "amsgrad", "foreach", "capturable", "differentiable", "fused"}
FOREIGN |= {"decoupled_weight_decay"}


def check_names(group: dict[str, Any]) -> None:
    """Refuses a key of a group that is nearly the name of a setting, and would do nothing.

    Raises:
        ValueError: names both.
    """
    settings = {*COMMON, *(name for rule in RULES.values() for name in rule.defaults)}
    for name in group:
        if name not in settings and name not in FOREIGN:
            close = get_close_matches(name, settings, n=1, cutoff=0.8)
            if close:
                raise ValueError(f"{name}: no setting of a group has this name; did you mean {close[0]}?")


def check_group(group: dict[str, Any]) -> None:
    """Checks a group's settings, alone and against its parameters.

    Raises:
        ValueError: names the value and what is allowed.
    """
    choices = (("rule", RULES), ("decay", MODES), ("decay_schedule", SCHEDULES))
    for key, registry in choices:
        if group[key] not in registry:
            raise ValueError(f"{key}={group[key]!r}: allowed are {', '.join(registry)}")
    for key in ("lr", "weight_decay"):
        if not (is_number(group[key]) and group[key] >= 0):
            raise ValueError(f"{key}={group[key]!r}: a finite number >= 0 is needed")
    if group.get("decoupled_weight_decay") is False and group["weight_decay"]:
        raise ValueError("the state is torch.optim.Adam's, whose weight decay is coupled: it is another method's")
    if group.get("amsgrad"):
        raise ValueError("amsgrad=True: not supported")
    _check_schedule(group)
    _check_anchor(group["anchor"])
    if group["state_dtype"] not in STATE_DTYPES:
        raise ValueError(f"state_dtype={group['state_dtype']}: allowed are {', '.join(map(str, STATE_DTYPES))}")
    RULES[group["rule"]].check(group)
    if len(set(map(id, group["params"]))) < len(group["params"]):
        raise ValueError("params: a parameter is given twice, and would be stepped twice")
    for p in group["params"]:
        _check_parameter(group, p)


def _check_schedule(group: dict[str, Any]) -> None:
    name, steps, lr_max = group["decay_schedule"], group["decay_steps"], group["lr_max"]
    if name in ("linear", "cosine") and not (is_number(steps) and steps == int(steps) > 0):
        raise ValueError(f"decay_steps={steps}: decay_schedule={name!r} needs a whole number of updates > 0")
    if name == "corrected" and not (is_number(lr_max) and lr_max > 0):
        raise ValueError(f"lr_max={lr_max}: decay_schedule='corrected' needs the largest lr, a finite number > 0")


def _check_anchor(anchor: Any) -> None:
    if not (anchor is None or anchor == "initial" or is_number(anchor)):
        raise ValueError(f"anchor={anchor!r}: None, a finite number or 'initial' is needed")


def _check_kernel(rule: str, p: torch.Tensor) -> None:
    """A kernel is stepped as a matrix, through a view."""
    if not p.is_contiguous():
        raise ValueError(
            f"rule={rule}: a kernel must be contiguous; convert activations, not weights, to channels_last"
        )
    if any(getattr(placement, "dim", 0) != 0 for placement in getattr(p, "placements", ())):
        raise ValueError(f"rule={rule}: a kernel may be divided along its first dimension only; got {p.placements}")  # type: ignore[attr-defined]


def _check_parameter(group: dict[str, Any], p: torch.Tensor) -> None:
    rule, shape = group["rule"], tuple(p.shape)
    if RULES[rule].matrices_only and (p.ndim not in (2, 3, 4) or p.is_complex()):
        raise ValueError(
            f"rule={rule}: takes real matrices, stacks of them, and kernels only; a tensor of shape {shape} and "
            f"dtype {p.dtype} was given"
        )
    if RULES[rule].matrices_only and p.ndim == 4:
        _check_kernel(rule, p)
    shares_of(p, draws=False)  # refuses placements
    if not (p.is_floating_point() or p.is_complex()):
        raise ValueError(f"parameters must be floating or complex tensors, one of dtype {p.dtype} was given")
    if p.is_complex() and group["state_dtype"] is not None:
        raise ValueError(f"state_dtype={group['state_dtype']}: for real parameters; one of dtype {p.dtype} was given")
    if p.dtype == torch.float16 and group["stochastic_rounding"]:
        raise ValueError("stochastic_rounding=True: for bfloat16, not float16 parameters")
