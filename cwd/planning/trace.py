"""The live tensors of a training step, on fake tensors: the model's own code runs, and no memory is taken.

Every tensor storage is counted from its birth to its release. Two runs, of two rows (sequences or images) and of more,
do the same operations, so that at each instant the bytes are fixed + rows * per_row; from these two lines comes the
peak of any micro-batch.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cwd.planning.shapes import Shape, checkpoint_layers

TWO = 2  # one row alone takes other paths: a dimension of size 1 is never copied to be laid out anew


@dataclass(frozen=True)
class Pass:
    """Bytes alive at each instant of a forward and backward pass, without parameters and gradients held before it."""

    fixed: tuple[int, ...]  # copies of weights, gradients, masks
    per_row: tuple[int, ...]  # activations

    def peak(self, rows: int) -> tuple[int, int]:
        """(fixed, activations) at the instant at which their sum is largest."""
        pairs = zip(self.fixed, self.per_row, strict=True)
        return max(((a, rows * b) for a, b in pairs), key=sum)

    def activations(self, rows: int) -> int:
        """The most that activations alone take."""
        return rows * max(self.per_row)


@cache
def trace_pass(shape: Shape) -> Pass:
    """The pass of a model of this shape."""
    few, more = (_levels(shape, rows) for rows in (TWO, TWO + shape.together))
    slopes = [(b - a) // shape.together for a, b in zip(few, more, strict=True)]
    fixed = [a - TWO * slope for a, slope in zip(few, slopes, strict=True)]
    extra, extra_slope = shape.beside()
    return Pass(tuple(a + extra for a in fixed), tuple(slope + extra_slope for slope in slopes))


def count_flops(shape: Shape, rows: int, backward: bool = True) -> int:
    """Floating-point operations of matrix products and convolutions in a forward pass, with its backward pass or
    without, as torch.utils.flop_counter has them.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(backward):
        model = _fake(shape)
        # The counter knows no fused attention of a CPU; the plain one does the same products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = shape.loss(model, rows)
            if backward:
                loss.backward()
    return counter.get_total_flops()


def _levels(shape: Shape, rows: int) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fake tensors cannot be copied to where some warnings look
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = _fake(shape)
            for name, parameter in model.named_parameters():
                if name in shape.held:
                    parameter.grad = torch.zeros_like(parameter)
            if shape.checkpointing:
                checkpoint_layers(model)
            with Living(model) as living:
                shape.loss(model, rows).backward()
    return living.levels


def _fake(shape: Shape) -> Any:
    """The model with fake tensors. It is built on the meta device, as fake ones would not say where a draw is cut."""
    with unset_fake_temporarily(), torch.device("meta"):
        model: Any = shape.build()
    model.to_empty(device="cpu")
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.train()


@dataclass
class Living(TorchDispatchMode):
    """While it is on, ``levels`` grows by the live bytes after each operation; what was there before does not count."""

    before: nn.Module
    levels: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._now = 0
        tensors = [*self.before.parameters(), *self.before.buffers()]
        tensors += [parameter.grad for parameter in self.before.parameters() if parameter.grad is not None]
        self._known: set[int] = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Collection[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.levels.append(self._now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self._now += size
            weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._now -= size
