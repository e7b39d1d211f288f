"""The paper's algorithms (arXiv 2510.12402, Appendix B) as plainly as they are printed, on tensors of any dtype.

In float64 they are what other code is checked against, so they share nothing with :mod:`cwd.optim`. A direction is
``u = direction(g, state, hyper)``; `state` is a dict that starts empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Hyper = Mapping[str, Any]
HYPER: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8},
    "lion": {"betas": (0.9, 0.99)},
    "sgd": {"momentum": 0.9, "dampening": 0.9},
    "muon": {"momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"},
}


def adamw(g: Tensor, state: dict[str, Any], hyper: Hyper) -> Tensor:
    """Algorithm 6: m and v with bias correction; u = mhat / (sqrt(vhat) + eps)."""
    beta1, beta2 = hyper["betas"]
    state["step"] = state.get("step", 0) + 1
    m = _buffer(state, "m", g).lerp_(g, 1 - beta1)
    v = _buffer(state, "v", g).mul_(beta2).addcmul_(g, g, value=1 - beta2)
    root = v.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(hyper["eps"])
    return (m / (1 - beta1 ** state["step"])).div_(root)


def lion(g: Tensor, state: dict[str, Any], hyper: Hyper) -> Tensor:
    """Algorithm 4: u = sgn(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g."""
    beta1, beta2 = hyper["betas"]
    m = _buffer(state, "m", g)
    u = m.lerp(g, 1 - beta1).sign_()
    m.lerp_(g, 1 - beta2)
    return u


def sgd(g: Tensor, state: dict[str, Any], hyper: Hyper) -> Tensor:
    """Algorithm 2: u = m = beta m + (1 - beta) g. With ``dampening`` 0 the sum that torch.optim.SGD keeps."""
    return _buffer(state, "m", g).mul_(hyper["momentum"]).add_(g, alpha=1 - hyper["dampening"])


def muon(g: Tensor, state: dict[str, Any], hyper: Hyper) -> Tensor:
    """Algorithm 5 with Nesterov momentum: M = beta M + G, u = 0.2 sqrt(max(rows, cols)) NewtonSchulz(G + beta M).

    With ``adjust_lr_fn`` "original" the scale is sqrt(max(1, rows / cols)).
    """
    m = _buffer(state, "m", g).mul_(hyper["momentum"]).add_(g)
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g + hyper["momentum"] * m
    x /= x.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    rows, cols = g.shape
    original = hyper["adjust_lr_fn"] == "original"
    return x.mul_(math.sqrt(max(1, rows / cols)) if original else 0.2 * math.sqrt(max(rows, cols)))


DIRECTIONS: dict[str, Callable[[Tensor, dict[str, Any], Hyper], Tensor]] = {
    "adamw": adamw,
    "lion": lion,
    "sgd": sgd,
    "muon": muon,
}


def decays(u: Tensor, x: Tensor) -> Tensor:
    """1[u x >= 0] for exact products: False only where the signs are strictly opposite."""
    return ~(((u > 0) & (x < 0)) | ((u < 0) & (x > 0)))


def step(rule: str, mode: str, x: Tensor, g: Tensor, state: dict[str, Any], hyper: Hyper) -> Tensor:
    """x - lr (u + weight_decay M x), with M = 1 for mode "decoupled" and :func:`decays` for "cautious"  (Algorithm 1).

    Args:
        x, g: of one shape, float64 for a reference.
        hyper: the rule's hyperparameters, ``lr`` and ``weight_decay``.
    """
    u = DIRECTIONS[rule](g, state, hyper)
    factor = decays(u, x) if mode == "cautious" else torch.ones_like(x)
    return x - hyper["lr"] * (u + hyper["weight_decay"] * (factor * x))


def _buffer(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
    if name not in state:
        state[name] = torch.zeros_like(like)
    return state[name]
