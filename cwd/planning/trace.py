"""The live tensors of a training step, on fake tensors: the model's own code runs, and no memory is taken.

Every tensor storage is counted from its birth to its release. Two runs, of TWO and THREE sequences, do the same
operations, so that at each instant the bytes are fixed + sequences * per_sequence; from these two lines comes the peak
of any micro-batch.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cwd.models import build
from cwd.models.loss import CHUNK

TWO, THREE = 2, 3  # one sequence alone takes other paths: a dimension of size 1 is never copied to be laid out anew


@dataclass(frozen=True)
class Shape:
    """What decides the tensors of a forward and backward pass. ``model`` is the configuration's section, as sorted
    items, ``held`` the parameters whose gradients lie in memory before the pass begins.
    """

    model: tuple[tuple[str, Any], ...]
    vocab_size: int
    seq_len: int
    bf16: bool = False
    fused: bool = False  # attention that never holds the scores of all pairs of positions
    checkpointing: bool = False  # activations of each layer are computed again in the backward pass
    chunked_loss: bool = False  # the logits are never there as a whole
    held: frozenset[str] = frozenset()

    def build(self) -> PreTrainedModel:
        """The model, on the device and in the mode that are set."""
        shape = dict(self.model)
        family = shape.pop("family")
        if self.fused and family == "simply":  # a fused kernel caps the scores inside; what it keeps is the same
            shape |= {"attn_softcap": None, "attn_implementation": "sdpa"}
        return build(family, vocab_size=self.vocab_size, seq_len=self.seq_len, **shape)


@dataclass(frozen=True)
class Pass:
    """Bytes alive at each instant of a forward and backward pass, without parameters and gradients held before it."""

    fixed: tuple[int, ...]  # copies of weights, gradients, masks
    per_sequence: tuple[int, ...]  # activations

    def peak(self, sequences: int) -> tuple[int, int]:
        """(fixed, activations) at the instant at which their sum is largest."""
        pairs = zip(self.fixed, self.per_sequence, strict=True)
        return max(((a, sequences * b) for a, b in pairs), key=sum)

    def activations(self, sequences: int) -> int:
        """The most that activations alone take."""
        return sequences * max(self.per_sequence)


@cache
def trace_pass(shape: Shape) -> Pass:
    """The pass of a model of this shape."""
    two, three = (_levels(shape, sequences) for sequences in (TWO, THREE))
    slopes = [b - a for a, b in zip(two, three, strict=True)]
    fixed = [a - TWO * slope for a, slope in zip(two, slopes, strict=True)]
    extra, extra_slope = _of_chunks(shape) if shape.chunked_loss else (0, 0)
    return Pass(tuple(a + extra for a in fixed), tuple(slope + extra_slope for slope in slopes))


def _of_chunks(shape: Shape) -> tuple[int, int]:
    """What a loss by chunks holds that _loss does not: its own sum of the head's gradient, and the gradients of the
    head's inputs before and after they are scaled (bytes, and bytes for a sequence).
    """
    with torch.device("meta"):
        head = shape.build().get_output_embeddings()
    inputs = shape.seq_len * head.weight.shape[1] * (2 if shape.bf16 else 4)
    return 4 * head.weight.numel(), 2 * inputs


def count_flops(shape: Shape, sequences: int) -> int:
    """Floating-point operations of matrix products in a forward and backward pass, as torch.utils.flop_counter has
    them.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _fake(shape)
        # The counter knows no fused attention of a CPU; the plain one does the same products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _loss(model, shape, sequences).backward()
    return counter.get_total_flops()


def _levels(shape: Shape, sequences: int) -> list[int]:
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
                _loss(model, shape, sequences).backward()
    return living.levels


def _fake(shape: Shape) -> PreTrainedModel:
    """The model with fake tensors. It is built on the meta device, as fake ones would not say where a draw is cut."""
    with unset_fake_temporarily(), torch.device("meta"):
        model = shape.build()
    model.to_empty(device="cpu")
    model.tie_weights()
    return model.train()


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Computes the activations of each layer again in the backward pass, instead of keeping them."""
    model.activation_checkpointing_enable({"use_reentrant": False})


def takes_targets(model: PreTrainedModel) -> bool:
    """Whether its forward computes the loss itself, by chunks of tokens."""
    return "targets" in signature(model.forward, follow_wrapped=False).parameters


def _loss(model: PreTrainedModel, shape: Shape, sequences: int) -> Tensor:
    ids = torch.zeros(sequences, shape.seq_len, dtype=torch.int64)
    # A chunk's logits at a time take as much as the logits of so many positions.
    keep = max(1, min(CHUNK // shape.vocab_size // sequences, shape.seq_len)) if shape.chunked_loss else 0
    # transformers cannot look at fake positions, and would take the rows for packed ones, with a mask of their own.
    whole_rows = patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None)
    with whole_rows, torch.autocast("cpu", torch.bfloat16, enabled=shape.bf16):
        logits = model(input_ids=ids, use_cache=False, **({"logits_to_keep": keep} if keep else {})).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, -keep:].flatten())


@dataclass
class Living(TorchDispatchMode):
    """While it is on, ``levels`` grows by the live bytes after each operation; what was there before does not count."""

    before: torch.nn.Module
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
