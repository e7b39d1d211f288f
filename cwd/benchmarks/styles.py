"""How cautious weight decay is written elsewhere, in a few lines each: the manner, not anybody's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

from cwd.benchmarks.reference import DIRECTIONS, HYPER


class Loop(torch.optim.Optimizer):
    """One parameter after the other in Python, eager, the mask by boolean indexing: simply-pytorch's manner."""

    def __init__(self, params: list[Parameter], rule: str, **hyper: Any) -> None:
        super().__init__(params, {"rule": rule, **HYPER[rule], **hyper})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for p in group["params"]:
                u = DIRECTIONS[group["rule"]](p.grad, self.state[p], group)
                mask = u * p >= 0
                p[mask] *= 1 - group["lr"] * group["weight_decay"]
                p.add_(u, alpha=-group["lr"])


class FusedThenUndo(torch.optim.AdamW):
    """A fused step that decays everything, then what should not have decayed is added back from a clone: dion's manner.

    The momentum stands for u: they have one sign.
    """

    def __init__(self, params: list[Parameter], **hyper: Any) -> None:
        super().__init__(params, **{**HYPER["adamw"], **hyper}, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update."""
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        super().step()
        parameters = [(p, group) for group in self.param_groups for p in group["params"]]
        for x, (p, group) in zip(before, parameters, strict=True):
            opposed = self.state[p]["exp_avg"] * x < 0
            p.add_(x.mul_(opposed), alpha=group["lr"] * group["weight_decay"])
