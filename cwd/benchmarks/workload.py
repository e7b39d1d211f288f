"""The tensors that optimizers are measured on, and an optimizer over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

Shapes = Sequence[tuple[int, ...]]
Make = Callable[[list[Parameter]], torch.optim.Optimizer]

LARGE, MANY = "38M in 19 tensors", "300 tensors of 10,000"
SHAPES: dict[str, list[tuple[int, ...]]] = {
    LARGE: [(2048, 1024)] * 18 + [(1024,)],
    MANY: [(100, 100)] * 300,
}
LR = 1e-9  # so small that a thousand steps leave the values as they are


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def matrices(shapes: Shapes) -> list[tuple[int, ...]]:
    """Those that Muon takes."""
    return [shape for shape in shapes if len(shape) == 2]


class Workload:
    """Random float32 parameters of `shapes` with random gradients, and the optimizer that `make` gives for them."""

    def __init__(self, make: Make, shapes: Shapes) -> None:
        generator = torch.Generator(device()).manual_seed(0)
        self.params = [Parameter(torch.randn(shape, generator=generator, device=device())) for shape in shapes]
        self.optimizer = make(self.params)
        for p in self.params:  # an optimizer may bring buffers of its own for them
            if p.grad is None:
                p.grad = torch.empty_like(p)
            p.grad.normal_(generator=generator)

    def prepare(self) -> None:
        """Gives gradients back to an optimizer that consumes them."""
        for p in self.params:
            if p.grad is None:
                p.grad = torch.randn_like(p)

    def step(self) -> None:
        """One update."""
        self.optimizer.step()

    def held_bytes(self) -> int:
        """Bytes of parameters, gradients and state; memory that several tensors share counts once."""
        gradients = [p.grad for p in self.params if p.grad is not None]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors([self.params, gradients])}
        storages |= {
            t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(list(self.optimizer.state.values()))
        }
        return sum(storage.nbytes() for storage in storages.values())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, list | tuple) else []
