"""The public classes: AdamW, Lion, Muon and SGD, with torch.optim's names and any decay mode."""

from __future__ import annotations

from typing import Any, Unpack

import torch

from cwd.optim.engine import RuleOptimizer
from cwd.optim.options import Options
from cwd.optim.orthogonal import Coefficients


class AdamW(RuleOptimizer):
    """Adam with decoupled, cautious or any other decay  (Loshchilov & Hutter 2019; CWD paper, Algorithm 6).

    Args:
        params: tensors, (name, tensor) pairs or groups; a group may set any of the following for itself.
        lr: learning rate, >= 0.
        betas: (beta1, beta2), each in [0, 1). The paper's choice is the default.
        eps: added to the root of the second moment.
        weight_decay: lambda; the decay of a step is lr * lambda * x.
        decay: a mode's name: none, decoupled, cautious, random, gradient, inner_product, opposite, scaled, spd.
        options: see :class:`cwd.optim.Options`.

    Raises:
        ValueError: a value out of range, an unknown mode.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        decay: str = "cautious",
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decay": decay}
        _initialize(self, "adamw", params, hyper, options)


class Lion(RuleOptimizer):
    """Lion  (Chen et al. 2023; CWD paper, Algorithm 4). Arguments as for :class:`AdamW`, without eps.

    The default betas are Lion's own; the paper selects (0.9, 0.95).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1.0,
        decay: str = "cautious",
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "decay": decay}
        _initialize(self, "lion", params, hyper, options)


class Muon(RuleOptimizer):
    """Muon, for matrices  (Jordan et al. 2024; CWD paper, Algorithm 5). Other tensors: a group with ``rule="adamw"``.

    Args:
        params: matrices, stacks of them, kernels (out, in, height, width), or groups. A group
            ``{"params": ..., "rule": "adamw"}`` goes to AdamW, with its own betas and eps.
        lr, weight_decay, decay, options: as for :class:`AdamW`.
        momentum: in [0, 1).
        nesterov: orthogonalise the look-ahead momentum.
        ns_steps: iterations of the orthogonalisation.
        ns_coefficients: (a, b, c) of its quintic; a sequence of such, one an iteration, the last one repeated; or
            "polar_express", the quintics of arXiv 2505.16932.
        ns_dtype: dtype of the iteration; None is that of the parameter, torch.bfloat16 what torch.optim.Muon does.
        adjust_lr_fn: scale of the update: match_rms_adamw, 0.2 * sqrt(max(rows, cols)); original,
            sqrt(max(1, rows / cols)); or none.
        eps: lower bound of the norm that the momentum is divided by.

    Raises:
        ValueError: a value out of range, an unknown mode, a tensor that is not a matrix in a Muon group.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        decay: str = "cautious",
        *,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        ns_dtype: torch.dtype | None = None,
        adjust_lr_fn: str = "match_rms_adamw",
        eps: float = 1e-7,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "decay": decay, "nesterov": nesterov}
        iteration = {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "ns_dtype": ns_dtype, "eps": eps}
        _initialize(self, "muon", params, {**hyper, **iteration, "adjust_lr_fn": adjust_lr_fn}, options)


class SGD(RuleOptimizer):
    """SGD with momentum  (CWD paper, Algorithm 2). Arguments as for :class:`AdamW`, and:

    Args:
        momentum: in [0, 1).
        dampening: the gradient enters the buffer times 1 - dampening. None, the default, is the momentum: the paper's
            exponential average. 0 is torch.optim.SGD.
        nesterov: u = g + momentum * buffer.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 1e-2,
        decay: str = "cautious",
        *,
        dampening: float | None = None,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "decay": decay}
        _initialize(self, "sgd", params, {**hyper, "dampening": dampening, "nesterov": nesterov}, options)


def _initialize(optimizer: RuleOptimizer, rule: str, params: Any, hyper: dict[str, Any], options: Options) -> None:
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        allowed = ", ".join(Options.__annotations__)
        raise TypeError(f"{type(optimizer).__name__}: unexpected argument {unknown[0]!r}; options are {allowed}")
    shared: dict[str, Any] = dict(options)
    own = {name: shared.pop(name) for name in ("seed", "compile", "flat") if name in shared}
    RuleOptimizer.__init__(optimizer, params, {"rule": rule, **hyper, **shared}, **own)
