"""The engine: joins an update rule and a decay mode, and applies x <- x - lr * (u + weight_decay * M(u, x, g) * x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from cwd.optim.compiled import can_compile, compiling_pays, step_compiled
from cwd.optim.decay import MODES, PER_TENSOR, words_of
from cwd.optim.directions import RULES, State
from cwd.optim.update import Member, update

SMALL = 2**13  # elements; larger tensors are no faster stepped together, on a CPU
TOGETHER = 2**16  # elements stepped together at most: temporaries stay in the cache


class Observation(NamedTuple):
    """What one tensor's step looked like, shown to :attr:`RuleOptimizer.observer` before x changes.

    All tensors have the parameter's shape, in the dtype of the computation. Read them, don't keep them: they are
    reused.
    """

    name: str
    x: Tensor
    u: Tensor
    g: Tensor


def _is_small(one: Member) -> bool:
    """Whether the tensor is stepped better with others: small, and nothing about its step asks for the tensor as a
    whole.
    """
    whole = RULES[one.group["rule"]].matrices_only or one.group["decay"] in PER_TENSOR
    plain = one.p.is_contiguous() and all(value.is_contiguous() for value in one.state.values())
    return not whole and plain and one.p.numel() <= SMALL


def _split(tensor: Tensor, members: list[Member]) -> list[Tensor]:
    """Each member's part of `tensor`, a view in the member's shape."""
    return [tensor] if len(members) == 1 else list(_unflatten_dense_tensors(tensor, [one.p for one in members]))


def _alike(members: list[Member]) -> Iterable[list[Member]]:
    """Members that share group, dtypes, device and step number, and so one call."""
    alike: dict[Hashable, list[Member]] = {}
    for one in members:
        key = (id(one.group), one.p.dtype, one.g.dtype, one.p.device, one.step)
        alike.setdefault(key, []).append(one)
    return alike.values()


def _pieces(members: list[Member]) -> Iterator[list[Member]]:
    """Runs of members of at most TOGETHER elements."""
    piece: list[Member] = []
    size = 0
    for one in members:
        size += one.p.numel()
        if size > TOGETHER and piece:
            yield piece
            piece, size = [], one.p.numel()
        piece.append(one)
    yield piece


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
        compile: compile the step of the elementwise rules (torch.compile): one pass over memory. None: where it pays,
            see :func:`cwd.optim.compiled.compiling_pays`. The first steps then take the seconds that compiling takes.

    Raises:
        ValueError: a hyperparameter out of range, an unknown rule or mode, a rule that cannot take a tensor's shape.
    """

    def __init__(self, params: Any, defaults: dict[str, Any], *, seed: int = 0, compile: bool | None = None) -> None:
        self.seed, self.compile = seed, compile
        self.observer: Callable[[Observation], None] | None = None
        own = RULES[defaults["rule"]].defaults if defaults["rule"] in RULES else {}
        super().__init__(params, {"weight_decay": 0.0, "decay": "cautious", "maximize": False, **own, **defaults})

    def __getstate__(self) -> dict[str, Any]:  # torch's leaves out what it does not know; an observer stays behind
        return {**super().__getstate__(), "seed": self.seed, "compile": self.compile, "observer": None}

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
        members = [
            self._member(number, name, p, group)
            for number, (name, p, group) in enumerate(self._parameters())
            if p.grad is not None and p.numel() > 0
        ]
        compiled, small, rest = self._sort(members)
        for one in rest:
            self._step_tensor(one)
        for alike in _alike(small):
            for piece in _pieces(alike):
                self._step_together(piece)
        for alike in _alike(compiled):
            self._step_compiled(alike)
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
                if group["rule"] != own["rule"]:
                    raise ValueError(f"rule={group['rule']!r}: the state of another rule, {own['rule']!r} is wanted")
                _check_group({**group, "params": own["params"]})
            state_dict = {**state_dict, "param_groups": filled}
        super().load_state_dict(state_dict)
        # torch casts the state to the parameter's dtype, or shares it: copy it, in the dtype of the computation.
        order = [i for group in theirs for i in group["params"]]
        for p, i in zip((p for group in self.param_groups for p in group["params"]), order, strict=True):
            for name, value in state_dict["state"].get(i, {}).items():
                wide = {"dtype": torch.promote_types(p.dtype, torch.float32), "device": p.device}
                step = torch.as_tensor(value, dtype=torch.float32).clone() if name == "step" else None
                self.state[p][name] = value.to(**wide, copy=True) if step is None else step

    def _parameters(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"group{number}.{i}" for i in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                yield name, p, group

    def _member(self, index: int, name: str, p: Tensor, group: dict[str, Any]) -> Member:
        """A parameter with its gradient and state, its step counted."""
        assert p.grad is not None
        if p.grad.is_sparse:
            raise ValueError(f"{name}: sparse gradients are not supported; make the layer dense (sparse=False)")
        dtype = torch.float32 if p.dtype in (torch.bfloat16, torch.float16) else p.dtype
        state = self._state(p, RULES[group["rule"]].buffers, dtype)
        state["step"] += 1
        return Member(index, name, p, p.grad, state, group, state["step"].item(), dtype)

    def _sort(self, members: list[Member]) -> tuple[list[Member], list[Member], list[Member]]:
        """Who is stepped how: compiled, together with other small tensors, alone."""
        compiled: list[Member] = []
        if self.compile is not False:
            candidates = [one for one in members if can_compile(one)]
            if self.compile or compiling_pays(candidates):
                compiled = candidates
        taken = {one.number for one in compiled}
        left = [one for one in members if one.number not in taken]
        small = [one for one in left if _is_small(one)]
        return compiled, small, [one for one in left if not _is_small(one)]

    def _step_compiled(self, members: list[Member]) -> None:
        if self.observer is not None:  # what the graph computes stays in it: look at a copy
            for one in members:
                copies = {name: one.state[name].clone() for name in RULES[one.group["rule"]].buffers}
                self._apply([one], one.p.to(one.dtype), one.g.to(one.dtype), copies)
        step_compiled(members, self.seed)

    def _step_tensor(self, one: Member) -> None:
        one.p.copy_(self._apply([one], one.p.to(one.dtype), one.g.to(one.dtype), one.state))

    def _step_together(self, members: list[Member]) -> None:
        """One pass over many small tensors, laid end to end: there, calls are what costs."""
        dtype, buffers = members[0].dtype, RULES[members[0].group["rule"]].buffers
        if len(members) == 1:
            self._step_tensor(members[0])
            return
        x = _flatten_dense_tensors([one.p for one in members]).to(dtype)
        g = _flatten_dense_tensors([one.g for one in members]).to(dtype)
        state = {name: _flatten_dense_tensors([one.state[name] for one in members]) for name in buffers}
        torch._foreach_copy_([one.p for one in members], _split(self._apply(members, x, g, state), members))
        for name in buffers:
            torch._foreach_copy_([one.state[name] for one in members], _split(state[name], members))

    def _apply(self, members: list[Member], x: Tensor, g: Tensor, state: State) -> Tensor:
        """x - lr * (u + weight_decay * M(u, x, g) * x), in the dtype of the computation; `state` is updated in place.

        One member: tensors of its shape. Several: vectors, one member after the other.
        """
        first, group = members[0], members[0].group
        words = words_of((self.seed, int(first.step), first.number))
        scalars = RULES[group["rule"]].scalars(first.step, group)
        after, u, g = update(x, g, state, scalars, group["lr"], group["weight_decay"], words, group)
        if self.observer is not None:
            for one, *seen in zip(members, *(_split(tensor, members) for tensor in (x, u, g)), strict=True):
                self.observer(Observation(one.name, *seen))
        return after

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
    if group.get("decoupled_weight_decay") is False and group["weight_decay"]:
        raise ValueError("the state is torch.optim.Adam's, whose weight decay is coupled: it is another method's")
    if group.get("amsgrad"):
        raise ValueError("amsgrad=True: not supported")
    rule = RULES[group["rule"]]
    rule.check(group)
    for p in group["params"]:
        if rule.matrices_only and p.ndim != 2:
            raise ValueError(f"rule={group['rule']}: takes matrices only, a tensor of shape {tuple(p.shape)} was given")
        if not p.is_floating_point():
            raise ValueError(f"parameters must be real floating tensors, one of dtype {p.dtype} was given")
