"""The update compiled into one pass over memory, a bounded number of tensors to a graph.

A graph takes CHUNK tensors of any sizes, laid flat, or one; so a model of hundreds of tensors costs two compilations
for each rule and mode, and very large generated kernels, which can crash a compiler, do not arise. What changes from
step to step (rates, lambda, bias corrections) goes in as a tensor: nothing recompiles when a schedule moves.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.fx.experimental._config as symbolic_shapes
from torch import Tensor

from cwd.optim.decay import words_of
from cwd.optim.directions import RULES
from cwd.optim.update import Member, update

CHUNK = 10
PAYS_FROM = 2**22  # elements; below, the seconds of compiling are more than most runs win


def can_compile(one: Member) -> bool:
    """Whether the tensor can go into a graph: elementwise rule, more than one element, plain and contiguous."""
    plain = type(one.p) in (Tensor, torch.nn.Parameter) and one.p.is_contiguous() and one.g.is_contiguous()
    return plain and one.p.numel() > 1 and not RULES[one.group["rule"]].matrices_only


def compiling_pays(members: list[Member]) -> bool:
    """The measured rule: there is a compiler, and at least PAYS_FROM elements (scripts/benchmark.py optimizers)."""
    if sum(one.p.numel() for one in members) < PAYS_FROM:
        return False
    return all(_has_compiler(kind) for kind in {one.p.device.type for one in members})


@cache
def _has_compiler(device: str) -> bool:
    if device == "cpu":
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    return device == "cuda" and importlib.util.find_spec("triton") is not None


def step_compiled(members: list[Member], seed: int) -> None:
    """Steps `members`: all of one group, dtype, device and step number, accepted by :func:`can_compile`."""
    first = members[0]
    group, rule = first.group, RULES[first.group["rule"]]
    scalars = rule.scalars(first.step, group)
    values = torch.tensor([group["lr"], group["weight_decay"], *scalars.values()], dtype=first.dtype)
    hyper = tuple((name, group[name]) for name in rule.defaults)
    function = _compiled(group["rule"], group["decay"], group["maximize"], hyper, tuple(scalars), first.dtype)
    for chunk in _chunks(members):
        words = _words(chunk, seed)
        tensors = [[_flat(one.p) for one in chunk], [_flat(one.g) for one in chunk]]
        state = {name: [_flat(one.state[name]) for one in chunk] for name in rule.buffers}
        # Equal sizes in one chunk must not become a demand on the next.
        with symbolic_shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            function(*tensors, state, values.to(first.p.device), words.to(first.p.device))
        torch.autograd.graph.increment_version([one.p for one in chunk])


@cache
def _compiled(
    rule: str,
    mode: str,
    maximize: bool,
    hyper: tuple[tuple[str, Any], ...],
    scalars: tuple[str, ...],
    dtype: torch.dtype,
) -> Callable[..., None]:
    group = {"rule": rule, "decay": mode, "maximize": maximize, **dict(hyper)}

    def _step(
        ps: list[Tensor], gs: list[Tensor], state: dict[str, list[Tensor]], values: Tensor, words: Tensor
    ) -> None:
        named = {name: values[2 + i] for i, name in enumerate(scalars)}
        for i, (p, g) in enumerate(zip(ps, gs, strict=True)):
            own = {name: buffers[i] for name, buffers in state.items()}
            after, _, _ = update(p.to(dtype), g.to(dtype), own, named, values[0], values[1], words[i], group)
            p.copy_(after)

    # A code object of its own: torch counts recompilations by code object, and closures of one function share theirs.
    code = _step.__code__.replace(co_name=f"{rule}_{mode}")
    return torch.compile(types.FunctionType(code, globals(), closure=_step.__closure__), fullgraph=True, dynamic=True)


def _words(chunk: list[Member], seed: int) -> Tensor:
    """(len(chunk), 2) int64; zeros for the modes that draw nothing."""
    if chunk[0].group["decay"] != "random":
        return torch.zeros((len(chunk), 2), dtype=torch.int64)
    return torch.tensor([words_of((seed, int(one.step), one.number)) for one in chunk])


def _flat(tensor: Tensor) -> Tensor:
    """The same memory as a vector. Not a view: torch.compile would look at what is viewed, and recompile for it."""
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), (tensor.numel(),), (1,))


def _chunks(members: list[Member]) -> Iterator[list[Member]]:
    whole = len(members) - len(members) % CHUNK
    for i in range(0, whole, CHUNK):
        yield members[i : i + CHUNK]
    for one in members[whole:]:
        yield [one]
