"""Update rules: gradient and state in, direction u out. The step itself, x <- x - lr * (u + decay), is the engine's.

A rule is a plain function on one tensor. It updates its state buffers in place and returns u, the *final* update: bias
corrected, orthogonalised, scaled, without lr and without decay. Buffers carry torch.optim's names, so that a stock
checkpoint loads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cwd.optim.orthogonal import orthogonalize, schedule

State = dict[str, Tensor]
Scalars = Mapping[str, float | Tensor]
Hyper = Mapping[str, Any]
Direction = Callable[[Tensor, State, Scalars, Hyper], Tensor]


def adamw(g: Tensor, state: State, scalars: Scalars, hyper: Hyper) -> Tensor:
    """u = mhat / (sqrt(vhat) + eps)  (Kingma & Ba 2015; CWD paper, Algorithm 6).

    Args:
        g: gradient, any shape, floating.
        state: ``exp_avg`` (m) and ``exp_avg_sq`` (v), same shape; updated in place.
        scalars: what depends on the number of the update, from :func:`adamw_scalars`; numbers or 0-D tensors.
        hyper: ``betas`` = (beta1, beta2), ``eps``.
    """
    beta1, beta2 = hyper["betas"]
    m, v = state["exp_avg"], state["exp_avg_sq"]
    m.lerp_(g, 1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    return m / v.sqrt().mul_(scalars["scale"]).add_(scalars["floor"])


def adamw_scalars(step: float, hyper: Hyper) -> dict[str, float]:
    """The bias corrections of update number `step`, from 1, drawn together so that u takes one division: with c1 =
    1 - beta1^step and c2 = 1 - beta2^step, (m / c1) / (sqrt(v / c2) + eps) = m / (scale * sqrt(v) + floor).
    """
    beta1, beta2 = hyper["betas"]
    c1, c2 = 1 - beta1**step, 1 - beta2**step
    return {"scale": c1 / math.sqrt(c2), "floor": c1 * hyper["eps"]}


def lion(g: Tensor, state: State, scalars: Scalars, hyper: Hyper) -> Tensor:
    """u = sign(beta1 * m + (1 - beta1) * g), then m <- beta2 * m + (1 - beta2) * g  (Chen et al. 2023; Algorithm 4).

    Args as for :func:`adamw`; state ``exp_avg``, hyper ``betas``.
    """
    beta1, beta2 = hyper["betas"]
    m = state["exp_avg"]
    u = m.mul(beta1).add_(g, alpha=1 - beta1).sign_()
    m.mul_(beta2).add_(g, alpha=1 - beta2)
    return u


def muon(g: Tensor, state: State, scalars: Scalars, hyper: Hyper) -> Tensor:
    """u = scale * NewtonSchulz(momentum), for matrices, alone or in stacks  (Jordan et al. 2024; Algorithm 5).

    The buffer is an exponential average as in torch.optim.Muon. The paper's sum M <- beta * M + g is the same up to a
    factor, which the orthogonalisation removes.

    Args:
        g: gradient of shape (..., rows, cols).
        state: ``momentum_buffer``, same shape; updated in place.
        hyper: ``momentum``, ``nesterov``; ``ns_coefficients`` and ``ns_steps``, for :func:`schedule`; ``ns_dtype``
            (None: that of g) and ``eps``, for :func:`orthogonalize`; and ``adjust_lr_fn``: "match_rms_adamw" scales by
            0.2 * sqrt(max(rows, cols)), "original" by sqrt(max(1, rows / cols)), "none" not at all, None is "original"
            as in torch.optim.Muon. The scale is a part of u; decay does not see it.
    """
    u = orthogonalized(look_ahead(g, state, scalars, hyper), hyper)
    return u.to(g.dtype).mul_(muon_scale(hyper["adjust_lr_fn"], *g.shape[-2:]))


def look_ahead(g: Tensor, state: State, scalars: Scalars, hyper: Hyper) -> Tensor:
    """What Muon orthogonalises: the momentum, looking ahead with Nesterov. Elementwise; arguments as :func:`muon`."""
    m = state["momentum_buffer"]
    m.lerp_(g, 1 - hyper["momentum"])
    return g.lerp(m, hyper["momentum"]) if hyper["nesterov"] else m


def orthogonalized(matrices: Tensor, hyper: Hyper) -> Tensor:
    """:func:`orthogonalize` as Muon's settings say: a new tensor, in the dtype of the iteration."""
    coefficients = schedule(hyper["ns_coefficients"], hyper["ns_steps"])
    return orthogonalize(matrices, coefficients, eps=hyper["eps"], dtype=hyper["ns_dtype"])


def sgd(g: Tensor, state: State, scalars: Scalars, hyper: Hyper) -> Tensor:
    """m <- momentum * m + (1 - dampening) * g; u = m, or g + momentum * m with Nesterov  (Algorithm 2).

    ``dampening`` None stands for ``momentum``: the paper's exponential average. With 0 it is torch.optim.SGD.
    State ``momentum_buffer`` (none if momentum is 0), hyper ``momentum``, ``dampening``, ``nesterov``.
    """
    momentum = hyper["momentum"]
    if momentum == 0:
        return g
    dampening = momentum if hyper["dampening"] is None else hyper["dampening"]
    m = state["momentum_buffer"]
    m.mul_(momentum).add_(g, alpha=1 - dampening)
    return g.add(m, alpha=momentum) if hyper["nesterov"] else m


def muon_scale(kind: str | None, rows: int, cols: int) -> float:
    """The factor of a matrix's update, see :func:`muon`."""
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, cols))
    return 1.0 if kind == "none" else math.sqrt(max(1.0, rows / cols))


def is_number(value: Any) -> bool:
    """Whether it is a finite real number, or a 0-D tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and bool(value.isfinite())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_fraction(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _check_betas(hyper: Hyper) -> None:
    betas = hyper["betas"]
    if not (isinstance(betas, list | tuple) and len(betas) == 2 and all(map(_is_fraction, betas))):
        raise ValueError(f"betas={betas!r}: two numbers in [0, 1) are needed")


def _check_eps(hyper: Hyper) -> None:
    if not (is_number(hyper["eps"]) and hyper["eps"] >= 0):
        raise ValueError(f"eps={hyper['eps']!r}: a finite number >= 0 is needed")


def _check_momentum(hyper: Hyper) -> None:
    if not _is_fraction(hyper["momentum"]):
        raise ValueError(f"momentum={hyper['momentum']!r}: a number in [0, 1) is needed")


def _check_adamw(hyper: Hyper) -> None:
    _check_betas(hyper)
    _check_eps(hyper)


def _check_muon(hyper: Hyper) -> None:
    _check_momentum(hyper)
    _check_eps(hyper)
    schedule(hyper["ns_coefficients"], hyper["ns_steps"])
    if hyper["adjust_lr_fn"] not in (None, *MUON_SCALES):
        raise ValueError(f"adjust_lr_fn={hyper['adjust_lr_fn']!r}: allowed are {', '.join(MUON_SCALES)}")


def _check_sgd(hyper: Hyper) -> None:
    _check_momentum(hyper)
    dampening = hyper["dampening"]
    if dampening is not None and not _is_fraction(dampening):
        raise ValueError(f"dampening={dampening}: None (the momentum) or a number in [0, 1) is needed")
    if hyper["nesterov"] and hyper["momentum"] == 0:
        raise ValueError("nesterov=True: needs a momentum above 0")


MUON_SCALES = ("match_rms_adamw", "original", "none")
_MUON_DEFAULTS = {
    "momentum": 0.95,
    "nesterov": True,
    "ns_steps": 5,
    "ns_coefficients": (3.4445, -4.7750, 2.0315),
    "ns_dtype": None,
    "adjust_lr_fn": "match_rms_adamw",
    "eps": 1e-7,
}


@dataclass(frozen=True)
class Rule:
    """An update rule with its state buffers, its hyperparameters and their defaults, and the shapes it accepts."""

    direction: Direction
    buffers: tuple[str, ...]
    defaults: dict[str, Any]
    check: Callable[[Hyper], None]
    scalars: Callable[[float, Hyper], dict[str, float]] = lambda step, hyper: {}
    matrices_only: bool = False


RULES = {
    "adamw": Rule(adamw, ("exp_avg", "exp_avg_sq"), {"betas": (0.9, 0.95), "eps": 1e-8}, _check_adamw, adamw_scalars),
    "lion": Rule(lion, ("exp_avg",), {"betas": (0.9, 0.99)}, _check_betas),
    "muon": Rule(muon, ("momentum_buffer",), _MUON_DEFAULTS, _check_muon, matrices_only=True),
    "sgd": Rule(sgd, ("momentum_buffer",), {"momentum": 0.9, "dampening": None, "nesterov": False}, _check_sgd),
}
