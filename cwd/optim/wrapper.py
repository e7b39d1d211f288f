"""Every decay mode for an optimizer from elsewhere: what its step did to x is read as lr * u, then decay subtracted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cwd.optim.decay import MODES, Context
from cwd.optim.draws import Elements, words_of
from cwd.optim.slots import add_up, laid_like, local, shares_of

if TYPE_CHECKING:
    from cwd.optim.sharded import Total

OWN_DECAY = ("weight_decay", "weight_decay_rate", "wd", "lambd")  # group keys of decay; lambd is torch.optim.ASGD's
PIECE = 2**17  # elements computed together on a CPU: temporaries stay in the cache
LARGE_PIECE = 2**24  # on other devices, where calls are what costs


class _Kept(NamedTuple):
    """A parameter that may decay in this step, with what is known before the step."""

    p: Tensor
    x: Tensor  # a copy of p, ours to overwrite
    g: Tensor | None
    lr: float | Tensor
    group: dict[str, Any]
    number: int  # among all parameters


def _inner(name: str) -> Any:  # an attribute that is the inner optimizer's
    return property(attrgetter(f"optimizer.{name}"), lambda self, value: setattr(self.optimizer, name, value))


class CautiousWeightDecay(torch.optim.Optimizer):
    """Gives any torch.optim.Optimizer every decay mode  (CWD paper, arXiv 2510.12402, equation 1).

    A step keeps a copy of x, lets the inner optimizer step, reads u = (x - x_after) / lr with the group's ``lr`` before
    the step, and subtracts lr * weight_decay * M(x, u, g) * x. g is ``p.grad`` after the step, negated if ``maximize``.
    A parameter without gradient decays only if the inner optimizer moved it. Low precision is computed in float32.

    The object *is* an Optimizer whose ``param_groups``, ``state`` and ``defaults`` are the inner one's own, so that
    schedulers, GradScaler and accelerate (which ``prepare`` it) take it; unknown attributes, such as Schedule-Free's
    ``train``, are the inner one's. Groups hold ``cwd_weight_decay``, ``cwd_mode`` and ``cwd_step`` (steps so far),
    which travel in the state dict. A group may bring the first two, to the inner constructor or add_param_group, and
    they may change between steps. A state dict of the bare optimizer loads, and leaves these as they are.

    Memory: one copy of the parameters that decay, kept between steps; temporaries of a piece of a tensor.

    **One limitation: an update below half a unit in the last place of x (bfloat16: any below x / 512) leaves no trace,
    reads as u = 0, and decays.** The native optimizers of :mod:`cwd.optim` lack it, and round bfloat16 only once.

    Args:
        optimizer: the inner optimizer, its own weight decay off. Parameters of any shape, floating or complex (real and
            imaginary parts decay by their own signs), on any device.
        weight_decay, mode: lambda >= 0 and a name in cwd.optim.MODES, for groups that do not bring their own.
        seed: of the random mode, whose draws are a function of (seed, ``cwd_step``, index of the tensor, element).

    Raises:
        ValueError: an inner optimizer that decays by itself, whenever that is turned on; one that is wrapped already;
            an unknown mode; a weight decay or lr that is not finite and >= 0; sparse gradients; ``differentiable``.
        TypeError: not an optimizer.
    """

    param_groups: list[dict[str, Any]] = _inner("param_groups")
    state: Any = _inner("state")
    defaults: dict[str, Any] = _inner("defaults")
    optimizer: torch.optim.Optimizer
    weight_decay: float
    mode: str
    seed: int
    _step_supports_amp_scaling = False  # GradScaler shall unscale, and skip: a fused step that skips looks like u = 0

    def __init__(
        self, optimizer: torch.optim.Optimizer, weight_decay: float = 0.1, mode: str = "cautious", *, seed: int = 0
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer={optimizer!r}: an instance of torch.optim.Optimizer is needed")
        if isinstance(optimizer, CautiousWeightDecay) or any("cwd_step" in group for group in optimizer.param_groups):
            raise ValueError(f"{type(optimizer).__name__} is wrapped in CautiousWeightDecay already: use that wrapper")
        if type(optimizer).__module__.startswith("accelerate."):
            raise ValueError(f"{type(optimizer).__name__}: wrap the bare optimizer, then prepare the wrapper")
        own = {"cwd_weight_decay": weight_decay, "cwd_mode": mode}
        for number, group in enumerate(optimizer.param_groups):
            _check_group(number, {**group, **own}, optimizer)
            _check_group(number, {**own, **group}, optimizer)
        self.__setstate__({"optimizer": optimizer, "weight_decay": weight_decay, "mode": mode, "seed": seed})
        self._fill_groups()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("optimizer", "weight_decay", "mode", "seed")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._copies: dict[Tensor, Tensor] = {}  # the last step's, to be used again
        for name, hooks in vars(self.optimizer).items():  # those of state_dict and load_state_dict fire there
            if name.startswith("_optimizer_") and "state_dict" in name:
                self.__dict__[name] = hooks

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer" or name.startswith("__"):  # not there yet, as in a copy
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __repr__(self) -> str:
        self._fill_groups()
        groups = [f"{group['cwd_mode']} {group['cwd_weight_decay']:g}" for group in self.param_groups]
        return f"{type(self).__name__}({type(self.optimizer).__name__}, {', '.join(dict.fromkeys(groups))})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The inner optimizer's."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, whose groups hold this class's settings and count as well."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, or of the inner optimizer alone."""
        mine = [{key: group.get(key, value) for key, value in self._settings().items()} for group in self.param_groups]
        for number, (own, group) in enumerate(zip(mine, state_dict["param_groups"], strict=False)):
            _check_group(number, {**own, **group}, self.optimizer)
        self.optimizer.load_state_dict(state_dict)
        for own, group in zip(mine, self.param_groups, strict=True):
            group.update({**own, **group})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the inner optimizer."""
        filled = {**self._settings(), **self.defaults, **param_group}
        _check_group(len(self.param_groups), filled, self.optimizer)
        self.optimizer.add_param_group(param_group)
        self._fill_groups()

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """The inner optimizer's step, then the decay. Returns what the inner step returns."""
        with torch.no_grad():
            kept = self._keep()
        result = self.optimizer.step(**kwargs) if closure is None else self.optimizer.step(closure, **kwargs)
        for group in self.param_groups:
            group["cwd_step"] += 1
        with torch.no_grad():
            seen = ((one, one.g if one.p.grad is None else one.p.grad) for one in kept)
            self._decay([self._look(one, g) for one, g in seen if g is not None or not torch.equal(one.p, one.x)])
        return result

    def _settings(self) -> dict[str, Any]:
        return {"cwd_weight_decay": self.weight_decay, "cwd_mode": self.mode, "cwd_step": 0}

    def _fill_groups(self) -> None:
        for group in self.param_groups:  # also one that was added behind our back
            group.update({**self._settings(), **group})

    def _keep(self) -> list[_Kept]:
        """Copies what may decay, into the last step's copies where they fit."""
        self._fill_groups()
        for number, group in enumerate(self.param_groups):
            _check_group(number, group, self.optimizer)
        kept = []
        for number, (p, group) in enumerate((p, of) for of in self.param_groups for p in of["params"]):
            active = group["cwd_weight_decay"] != 0 and group["cwd_mode"] != "none" and p.numel() != 0
            if active and (p.requires_grad or p.grad is not None):
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise ValueError(f"parameter {number}: sparse gradients are not supported")
                x, lr = self._copies.get(p), group["lr"]
                if x is None or (x.shape, x.dtype, x.device) != (p.shape, p.dtype, p.device):
                    x = torch.empty_like(p, requires_grad=False)
                lr = lr.squeeze().clone() if isinstance(lr, Tensor) else lr
                kept.append(_Kept(p, x, p.grad, lr, group, number))
        self._copies = {one.p: one.x for one in kept}
        if kept:
            torch._foreach_copy_([local(one.x) for one in kept], [local(one.p) for one in kept])
        return kept

    def _look(self, one: _Kept, g: Tensor | None) -> _Looked:
        """What the inner optimizer did to a parameter."""
        mode = MODES[one.group["cwd_mode"]]
        size = one.p.numel() * (2 if one.p.is_complex() else 1)
        context = Context(one.lr, size, words_of((self.seed, one.group["cwd_step"], one.number)))
        elements, total = shares_of(one.p, mode.draws)
        pieces = _pieces(one.p, one.x, g)
        if mode.sums is not None:
            context = context._replace(
                sums=torch.stack([mode.sums(*_seen(piece, one), context) for piece in pieces]).sum(0)
            )
        return _Looked(one, pieces, _starts(pieces, elements), context, total)

    def _decay(self, looked: Sequence[_Looked]) -> None:
        """Subtracts the decay, after one all-reduce of the sums of all DTensors on the same devices."""
        sums = add_up([of.context.sums for of in looked], [of.total for of in looked])
        for (one, pieces, starts, before, _), own in zip(looked, sums, strict=True):
            mode, context = MODES[one.group["cwd_mode"]], before._replace(sums=own)
            coefficient = one.group["cwd_weight_decay"] * (1.0 if mode.projects else one.lr)
            for piece, first in zip(pieces, starts, strict=True):
                x, u, gradient = _seen(piece, one)
                factor = mode.factor(x, u, gradient, context._replace(elements=first))
                piece.p.sub_((piece.p if mode.projects else x).mul(factor).mul_(coefficient))


class _Looked(NamedTuple):
    """A parameter after the inner step, in pieces, with the number of each one's first element."""

    one: _Kept
    pieces: list[_Piece]
    starts: list[Elements]
    context: Context
    total: Total | None


class _Piece(NamedTuple):
    p: Tensor
    x: Tensor
    g: Tensor | None


def _pieces(p: Tensor, x: Tensor, g: Tensor | None) -> list[_Piece]:
    """Parts of a parameter, its copy and its gradient that can be computed one by one: views, real, local."""
    p, x, g = local(p), local(x), None if g is None else local(laid_like(g, p))
    size = PIECE if p.device.type == "cpu" else LARGE_PIECE
    if not (p.is_contiguous() and x.is_contiguous()) or p.numel() <= size:
        return [_Piece(p, x, g)]
    ps, xs = p.view(-1).split(size), x.view(-1).split(size)
    gs = [None] * len(ps) if g is None else g.reshape(-1).split(size)
    return [_Piece(*parts) for parts in zip(ps, xs, gs, strict=True)]


def _starts(pieces: list[_Piece], elements: Elements) -> list[Elements]:
    """The number of each piece's first element, or of all its elements."""
    ends = list(accumulate(piece.p.numel() for piece in pieces))
    if isinstance(elements, Tensor):
        return [elements[end - piece.p.numel() : end] for piece, end in zip(pieces, ends, strict=True)]
    return [elements + end - piece.p.numel() for piece, end in zip(pieces, ends, strict=True)]


def _seen(piece: _Piece, one: _Kept) -> tuple[Tensor, Tensor, Tensor]:
    """x, u and g as a mode sees them."""
    x = piece.x.to(torch.promote_types(piece.x.dtype, torch.float32))
    u = (x - piece.p).div_(one.lr + (one.lr == 0))  # lr 0: u is 0, not 0/0
    g = torch.zeros_like(x) if piece.g is None else piece.g.to(x.dtype)
    return x, u, -g if one.group.get("maximize") else g


def _check_group(number: int, group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    where = f"{type(optimizer).__name__}, group {number}: "
    for name in OWN_DECAY:
        if group.get(name):
            raise ValueError(f"{where}{name}={group[name]}: decay would act twice; set {name}=0")
    if group["cwd_mode"] not in MODES:
        raise ValueError(f"{where}mode={group['cwd_mode']!r}: allowed are {', '.join(MODES)}")
    for name in ("cwd_weight_decay", "lr"):
        value = group.get(name)
        if value is None:
            raise ValueError(f"{where}no {name}: the decay of a step is lr * weight_decay * x")
        if not isinstance(value, Tensor) and not 0 <= value < math.inf:  # to read a tensor may be to wait for a device
            raise ValueError(f"{where}{name.removeprefix('cwd_')}={value}: a finite number >= 0 is needed")
    if group.get("differentiable"):
        raise ValueError(f"{where}differentiable=True: the decay has no gradient; not supported")
