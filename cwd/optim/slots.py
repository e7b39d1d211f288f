"""A parameter with its state, as tensors that a step can write: plain, real, this process's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cwd.optim.decay import MODES
from cwd.optim.directions import RULES
from cwd.optim.draws import Elements, words_of
from cwd.optim.update import Anchor, Part, Whole

if TYPE_CHECKING:
    from cwd.optim.sharded import Total

LOW_PRECISION = (torch.bfloat16, torch.float16)


class Slot:
    """What is known about a parameter between steps.

    Attributes:
        number, name: its place among all parameters of the optimizer, and its name.
        p: the parameter; `state` its entry in the optimizer's state.
        x, buffers, anchor: the tensors that are stepped. Of a DTensor its local shard, of a complex tensor its view as
            real numbers, of a convolution's kernel, for a rule that takes matrices, its view as one.
        dtype: of the computation. `plain`: all of these are contiguous. `simple`: the gradient is stepped as it is.
        stored: names of the entries of `state` that are of the parameter's shape and take part.
        size: elements of the whole tensor, real and imaginary parts counted by themselves.
        elements: where in the whole tensor `x` begins, see :class:`cwd.optim.update.Part`.
        total: adds sums up over the processes that share the tensor; None if this one has all of it.
    """

    def __init__(self, number: int, name: str, p: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        self.number, self.name, self.p, self.group, self.state = number, name, p, group, state
        self.dtype = computing_dtype(p.dtype)
        self._fill()
        self._kernel = RULES[group["rule"]].matrices_only and p.ndim == 4
        self.x = self._seen(p.detach())
        self.names = tuple(name for name in RULES[group["rule"]].buffers if name in state)
        self.buffers = {name: self._seen(state[name]) for name in self.names}
        self.anchor: Anchor = self._seen(state["anchor"]) if group["anchor"] == "initial" else group["anchor"]
        self.stored = (*self.names, *(["anchor"] if isinstance(self.anchor, Tensor) else []))
        self._check_shapes()
        self.size = p.numel() * (2 if p.is_complex() else 1)
        self.elements, self.total = shares_of(p, self.draws)
        tensors = [self.x, *self.buffers.values(), *([self.anchor] if isinstance(self.anchor, Tensor) else [])]
        self.plain = all(tensor.is_contiguous() for tensor in tensors)
        self.simple = type(p) in (Tensor, torch.nn.Parameter) and not p.is_complex() and not self._kernel

    def gradient(self) -> Tensor:
        """The gradient, as `x` is."""
        g = self.p.grad
        assert g is not None
        return g if self.simple else self._seen(g.resolve_conj())

    def lay_gradient(self) -> None:
        """Gives the gradient of a DTensor the parameter's placements: all processes call it in the same order."""
        assert self.p.grad is not None
        self.p.grad = laid_like(self.p.grad, self.p)

    def part(self, g: Tensor) -> Part:
        """The whole tensor as one part."""
        return Part(self.x, g, self.buffers, self.anchor, self.elements)

    def whole(self, seed: int, step: int) -> Whole:
        """What the parts of the tensor share in update number `step`."""
        words = [words_of(key) for key in self.keys(seed, step)] if self.draws else None
        return Whole(self.group, self.dtype, self.size, words)

    @property
    def draws(self) -> bool:
        """Whether the step draws random numbers."""
        return MODES[self.group["decay"]].draws or self.group["stochastic_rounding"]

    def keys(self, seed: int, step: int) -> list[tuple[int, int, int]]:
        """The keys of what is drawn: for the mode, the parameter, and each buffer."""
        return [(seed, step, self.number | salt << 32) for salt in range(2 + len(self.names))]

    def _seen(self, tensor: Tensor) -> Tensor:
        own = local(tensor)
        return as_matrix(own) if self._kernel else own

    def _fill(self) -> None:
        """Makes what is missing of the state: of a new parameter, or one from a stock SGD or Muon."""
        state, group = self.state, self.group
        dtype = group["state_dtype"] or (self.dtype if not self.p.is_complex() else self.p.dtype)
        if "step" not in state:
            state["step"] = torch.zeros(())  # on the CPU, float32: as in torch.optim
        if group["rule"] != "sgd" or group["momentum"] != 0:
            for name in RULES[group["rule"]].buffers:
                if name not in state:
                    state[name] = torch.zeros_like(self.p, dtype=dtype, memory_format=torch.preserve_format)
        if group["anchor"] == "initial" and "anchor" not in state:
            state["anchor"] = self.p.detach().clone()

    def _check_shapes(self) -> None:
        found = {name: self.state[name].shape for name in self.stored}
        if self.p.grad is not None:
            found["grad"] = self.p.grad.shape
        for name, shape in found.items():
            if shape != self.p.shape:
                raise ValueError(
                    f"{self.name}: {name} of shape {tuple(shape)}; the parameter's is {tuple(self.p.shape)}"
                )


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for bfloat16 and float16, else the tensor's own; of a complex tensor, that of its parts."""
    return torch.float32 if dtype in LOW_PRECISION else dtype.to_real()


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor, without loading torch.distributed to find out."""
    return hasattr(tensor, "to_local")


def shares_of(p: Tensor, draws: bool) -> tuple[Elements, Total | None]:
    """Which elements of a parameter this process has, said only if random numbers are drawn, and how to add sums up
    over the processes that have the others.

    Raises:
        ValueError: a DTensor whose placements are not supported.
    """
    if not is_distributed(p):
        return 0, None
    from cwd.optim.sharded import elements_of, total_over

    return elements_of(p) if draws else 0, total_over(p)


def add_up(sums: Sequence[Tensor | None], totals: Sequence[Total | None]) -> list[Tensor | None]:
    """Vectors of sums, where there are any, each added up by its total: one all-reduce for all that the same processes
    share.
    """
    found = list(sums)
    alike: dict[Total, dict[int, Tensor]] = {}
    for i, (own, total) in enumerate(zip(sums, totals, strict=True)):
        if own is not None and total is not None:
            alike.setdefault(total, {})[i] = own
    for total, of in alike.items():
        together = total(torch.cat(list(of.values())))
        for i, own in zip(of, together.split([len(own) for own in of.values()]), strict=True):
            found[i] = own
    return found


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, real."""
    if is_distributed(tensor):
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def as_matrix(kernel: Tensor) -> Tensor:
    """A convolution's kernel (out, in, height, width) as the matrix (out, in * height * width): a view, unless it is a
    gradient that lies otherwise in memory.
    """
    return kernel.reshape(kernel.shape[0], kernel.shape[1:].numel())


def laid_like(g: Tensor, p: Any) -> Tensor:
    """A gradient with its parameter's placements: itself, or if they differ, a new DTensor, made with messages."""
    if is_distributed(p) and g.placements != p.placements:  # type: ignore[attr-defined]
        return g.redistribute(placements=p.placements)  # type: ignore[attr-defined]
    return g
