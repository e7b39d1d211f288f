"""The engine: joins an update rule and a decay mode, and applies x <- x - lr * (u + weight_decay * M(u, x, g) * x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwd.optim.decay import MODES
from cwd.optim.directions import RULES


class Observation(NamedTuple):
    """What one tensor's step looked like, shown to :attr:`RuleOptimizer.observer` before x changes.

    All tensors have the parameter's shape, in the dtype of the computation. Read them, don't keep them: they are
    reused.
    """

    name: str
    x: Tensor
    u: Tensor
    g: Tensor


class RuleOptimizer(torch.optim.Optimizer):
    """Any update rule with any decay mode, per parameter group.

    Each group holds ``rule`` (a name in RULES), ``decay`` (a name in MODES), ``lr``, ``weight_decay``, ``maximize`` and
    the rule's own hyperparameters; what a group leaves out comes from the defaults. The coefficient of the decay is
    ``lr * weight_decay``.

    Low-precision parameters (bfloat16, float16) are computed in float32 and rounded once, decay and update together;
    their state is float32.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of groups, as for torch.optim.
        defaults: hyperparameters of all groups that do not say otherwise; must hold ``rule`` and ``lr``.
        seed: seed of the modes that draw.

    Raises:
        ValueError: a hyperparameter out of range, an unknown rule or mode, a rule that cannot take a tensor's shape.
    """

    def __init__(self, params: Any, defaults: dict[str, Any], *, seed: int = 0) -> None:
        self.seed = seed
        self.observer: Callable[[Observation], None] | None = None
        own = RULES[defaults["rule"]].defaults if defaults["rule"] in RULES else {}
        super().__init__(params, {"weight_decay": 0.0, "decay": "cautious", "maximize": False, **own, **defaults})

    def __getstate__(self) -> dict[str, Any]:  # torch's leaves out what it does not know; an observer stays behind
        return {**super().__getstate__(), "seed": self.seed, "observer": None}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; its rule's defaults fill what it leaves out."""
        rule = param_group.setdefault("rule", self.defaults["rule"])
        if rule in RULES and rule != self.defaults["rule"]:
            for name, value in RULES[rule].defaults.items():
                param_group.setdefault(name, value)
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the closure's loss, if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, (name, p, group) in enumerate(self._parameters()):
            if p.grad is not None and p.numel() > 0:
                self._step_tensor(index, name, p, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, or a stock one of torch.optim, whose groups do not know `rule` and
        `decay`.
        """
        mine, theirs = self.param_groups, state_dict["param_groups"]
        if len(mine) == len(theirs):
            filled = [
                {**{k: v for k, v in own.items() if k not in ("params", "param_names")}, **saved}
                for own, saved in zip(mine, theirs, strict=True)
            ]
            for own, group in zip(mine, filled, strict=True):
                _check_group({**group, "params": own["params"]})
            state_dict = {**state_dict, "param_groups": filled}
        super().load_state_dict(state_dict)
        # torch casts the state to the parameter's dtype, or shares it: copy it, in the dtype of the computation.
        order = [i for group in theirs for i in group["params"]]
        for p, i in zip((p for group in self.param_groups for p in group["params"]), order, strict=True):
            for name, value in state_dict["state"].get(i, {}).items():
                wide = {"dtype": torch.promote_types(p.dtype, torch.float32), "device": p.device}
                self.state[p][name] = value.clone() if name == "step" else value.to(**wide, copy=True)

    def _parameters(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"group{number}.{i}" for i in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                yield name, p, group

    def _step_tensor(self, index: int, name: str, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        if p.grad.is_sparse:
            raise ValueError(f"{name}: sparse gradients are not supported; make the layer dense (sparse=False)")
        rule, mode = RULES[group["rule"]], MODES[group["decay"]]
        dtype = torch.float32 if p.dtype in (torch.bfloat16, torch.float16) else p.dtype
        state = self._state(p, rule.buffers, dtype)
        x, g = p.to(dtype), p.grad.to(dtype)
        if group["maximize"]:
            g = -g
        state["step"] += 1
        step = state["step"].item()
        u = rule.direction(g, state, step, group)
        if self.observer is not None:
            self.observer(Observation(name, x, u, g))
        factor = mode(x, u, g, (self.seed, int(step), index))
        p.copy_(x - group["lr"] * (u + group["weight_decay"] * (factor * x)))

    def _state(self, p: Tensor, buffers: tuple[str, ...], dtype: torch.dtype) -> dict[str, Tensor]:
        state = self.state[p]
        if "step" not in state:  # new, or from a stock SGD or Muon
            state["step"] = torch.zeros(())  # on the CPU, float32: as in torch.optim
        for buffer in buffers:
            if buffer not in state:
                state[buffer] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
        return state


def _check_group(group: dict[str, Any]) -> None:
    for key, registry in (("rule", RULES), ("decay", MODES)):
        if group[key] not in registry:
            raise ValueError(f"{key}={group[key]!r}: allowed are {', '.join(registry)}")
    for key in ("lr", "weight_decay"):
        if not (group[key] >= 0 and math.isfinite(group[key])):
            raise ValueError(f"{key}={group[key]}: a finite number >= 0 is needed")
    if group.get("amsgrad"):
        raise ValueError("amsgrad=True: not supported")
    rule = RULES[group["rule"]]
    rule.check(group)
    for p in group["params"]:
        if rule.matrices_only and p.ndim != 2:
            raise ValueError(f"rule={group['rule']}: takes matrices only, a tensor of shape {tuple(p.shape)} was given")
        if not p.is_floating_point():
            raise ValueError(f"parameters must be real floating tensors, one of dtype {p.dtype} was given")
