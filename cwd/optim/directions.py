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

import torch
from torch import Tensor

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
    """u = scale * NewtonSchulz(momentum), for matrices  (Jordan et al. 2024; Algorithm 5).

    The buffer is an exponential average as in torch.optim.Muon. The paper's sum M <- beta * M + g is the same up to a
    factor, which the orthogonalisation removes.

    Args:
        g: gradient of shape (rows, cols).
        state: ``momentum_buffer``, same shape; updated in place.
        hyper: ``momentum``, ``nesterov``, ``ns_steps``, ``ns_coefficients``, ``ns_dtype`` (None: that of g), ``eps``,
            and ``adjust_lr_fn``: "match_rms_adamw" scales by 0.2 * sqrt(max(rows, cols)), "original" by sqrt(max(1,
            rows / cols)), "none" not at all, None is "original" as in torch.optim.Muon. The scale is a part of u; decay
            does not see it.
    """
    u = orthogonalized(look_ahead(g, state, scalars, hyper).to(hyper["ns_dtype"] or g.dtype), hyper)
    return u.to(g.dtype).mul(muon_scale(hyper["adjust_lr_fn"], *g.shape[-2:]))


def look_ahead(g: Tensor, state: State, scalars: Scalars, hyper: Hyper) -> Tensor:
    """What Muon orthogonalises: the momentum, looking ahead with Nesterov. Elementwise; arguments as :func:`muon`."""
    m = state["momentum_buffer"]
    m.lerp_(g, 1 - hyper["momentum"])
    return g.lerp(m, hyper["momentum"]) if hyper["nesterov"] else m


def orthogonalized(matrices: Tensor, hyper: Hyper) -> Tensor:
    """A matrix, or each of a stack (k, rows, cols), orthogonalised as Muon's settings say, in its dtype."""
    if matrices.ndim == 3:
        return torch.stack([orthogonalized(matrix, hyper) for matrix in matrices])
    return orthogonalize(matrices, hyper["ns_steps"], hyper["ns_coefficients"], eps=hyper["eps"])


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


def orthogonalize(matrix: Tensor, steps: int, coefficients: tuple[float, float, float], *, eps: float) -> Tensor:
    """Newton-Schulz iteration X <- a X + (b G + c G^2) X with G = X X^T: singular values of `matrix` move towards 1.

    Args:
        matrix: (rows, cols), floating; computed in its dtype. Wide or tall alike.
        steps: number of iterations.
        coefficients: (a, b, c) of the quintic.
        eps: lower bound of the Frobenius norm that `matrix` is divided by.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def muon_scale(kind: str | None, rows: int, cols: int) -> float:
    """The factor of a matrix's update, see :func:`muon`."""
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, cols))
    return 1.0 if kind == "none" else math.sqrt(max(1.0, rows / cols))


def _check_betas(hyper: Hyper) -> None:
    betas = hyper["betas"]
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={betas}: two numbers in [0, 1) are needed")


def _check_eps(hyper: Hyper) -> None:
    if not (hyper["eps"] >= 0 and math.isfinite(hyper["eps"])):
        raise ValueError(f"eps={hyper['eps']}: a finite number >= 0 is needed")


def _check_momentum(hyper: Hyper) -> None:
    if not 0 <= hyper["momentum"] < 1:
        raise ValueError(f"momentum={hyper['momentum']}: a number in [0, 1) is needed")


def _check_adamw(hyper: Hyper) -> None:
    _check_betas(hyper)
    _check_eps(hyper)


def _check_muon(hyper: Hyper) -> None:
    _check_momentum(hyper)
    _check_eps(hyper)
    if not (isinstance(hyper["ns_steps"], int) and 0 < hyper["ns_steps"] < 100):
        raise ValueError(f"ns_steps={hyper['ns_steps']}: a whole number from 1 to 99 is needed")
    if len(hyper["ns_coefficients"]) != 3:
        raise ValueError(f"ns_coefficients={hyper['ns_coefficients']}: three numbers are needed")
    if hyper["adjust_lr_fn"] not in (None, *MUON_SCALES):
        raise ValueError(f"adjust_lr_fn={hyper['adjust_lr_fn']!r}: allowed are {', '.join(MUON_SCALES)}")


def _check_sgd(hyper: Hyper) -> None:
    _check_momentum(hyper)
    dampening = hyper["dampening"]
    if dampening is not None and not 0 <= dampening < 1:
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
