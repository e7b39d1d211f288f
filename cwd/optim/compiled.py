"""The update compiled into one pass over memory, a bounded number of tensors to a graph.

A graph takes CHUNK tensors of any sizes, laid flat, or one; so a model of hundreds of tensors costs two compilations
for each rule and mode, and very large generated kernels, which can crash a compiler, do not arise. What changes from
step to step (rates, lambda, bias corrections) goes in as a tensor: nothing is compiled again when a schedule moves.

The function is traced with symbolic sizes and handed to inductor, torch.compile's compiler. torch.compile's own door is
not used: its guards take 40 microseconds a call, five times what the call itself does, and check what is known here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwd.optim.decay import MODES
from cwd.optim.directions import RULES
from cwd.optim.draws import words_of
from cwd.optim.slots import Slot
from cwd.optim.update import Now, Part, Whole, advance

CHUNK = 10
PAYS_FROM = 2**21  # elements; below, the seconds of compiling are more than most runs win
# Loops are shared among as many threads as there are when they run; else it is among those there were at compiling,
# and not at all, as the examples are small.
CONFIG = {"cpp.dynamic_threads": True}
compilations = 0  # since the start of the process


class Layout(NamedTuple):
    """What a compiled function depends on: everything but sizes, addresses and the numbers of the step."""

    group: tuple[tuple[str, Any], ...]  # the settings of the group that are not among those numbers
    buffers: tuple[str, ...]
    scalars: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]  # of parameter, gradient, buffers and anchor, if it is a tensor
    dtype: torch.dtype  # of the computation
    device: torch.device
    anchor: float | str | None  # "tensor": one for each parameter
    draws: bool
    measured: bool
    tensors: int


def can_compile(slot: Slot) -> bool:
    """Whether the tensor, or the shard here, can go into a graph: elementwise rule, contiguous, more than one element,
    32-bit indices, and no sums over several devices.
    """
    many = 1 < slot.x.numel() < 2**31
    return (
        many
        and slot.plain
        and not RULES[slot.group["rule"]].matrices_only
        and (slot.total is None or MODES[slot.group["decay"]].sums is None)
        and (isinstance(slot.elements, int) or not slot.draws)
    )


def compiling_pays(slots: Sequence[Slot]) -> bool:
    """The measured rule: there is a compiler, and at least PAYS_FROM elements (scripts/benchmark.py optimizers)."""
    if sum(slot.x.numel() for slot in slots) < PAYS_FROM:
        return False
    return all(_has_compiler(kind) for kind in {slot.x.device.type for slot in slots})


@cache
def _has_compiler(device: str) -> bool:
    if device == "cpu":
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    return device == "cuda" and importlib.util.find_spec("triton") is not None


class Chunk:
    """CHUNK tensors of one group, dtype, device and step number, or one, accepted by :func:`can_compile`."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots, first = slots, slots[0]
        self.params = [slot.p for slot in slots]
        self.simple = all(slot.simple for slot in slots)
        anchored = isinstance(first.anchor, Tensor)
        stored = [[slot.x, *slot.buffers.values(), *([slot.anchor] if anchored else [])] for slot in slots]
        self.tensors = [[tensor.view(-1) for tensor in tensors] for tensors in stored]  # type: ignore[union-attr]
        self._functions: dict[tuple[torch.dtype, bool], Callable[[list[Tensor]], Sequence[Tensor]]] = {}

    def gradients(self) -> list[Tensor]:
        """Of each tensor, as its slot gives it."""
        if self.simple:  # without the hundreds of calls
            return [p.grad for p in self.params if p.grad is not None]
        return [slot.gradient() for slot in self.slots]

    def step(self, gs: Sequence[Tensor], values: Tensor, seed: int, step: int, *, measured: bool) -> list[Tensor]:
        """Steps the tensors, given their contiguous gradients and :func:`values_of` the step; returns the sums of their
        measures if `measured`.
        """
        first, key = self.slots[0], (gs[0].dtype, measured)
        if key not in self._functions:
            self._functions[key] = _compiled(_layout(first, gs[0].dtype, len(self.slots), measured))
        arguments = [values]
        if first.draws:
            arguments.append(_words(self.slots, seed, step).to(first.x.device))
        for (x, *others), g in zip(self.tensors, gs, strict=True):
            arguments += x, g.view(-1), *others
        found = self._functions[key](arguments)
        torch.autograd.graph.increment_version(self.params)
        return list(found)


def values_of(now: Now, slot: Slot) -> Tensor:
    """The numbers of the step as a graph takes them: lr, weight decay, the rule's scalars."""
    return torch.tensor([now.lr, now.weight_decay, *now.scalars.values()], dtype=slot.dtype).to(slot.x.device)


def chunks(slots: Sequence[Slot]) -> Iterator[Chunk]:
    """Whole chunks, and the rest one by one. All one by one where numbers are drawn: ten such kernels in a graph take a
    minute to compile, and what a call costs is little beside the drawing.
    """
    whole = 0 if slots and slots[0].draws else len(slots) - len(slots) % CHUNK
    for i in range(0, whole, CHUNK):
        yield Chunk(slots[i : i + CHUNK])
    for slot in slots[whole:]:
        yield Chunk([slot])


def fixed_settings(group: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The settings of a group that a graph has in it."""
    names = ("rule", "decay", "maximize", "stochastic_rounding", *RULES[group["rule"]].defaults)
    return tuple((name, _hashable(group[name])) for name in names)


def _hashable(value: Any) -> Any:
    return tuple(_hashable(one) for one in value) if isinstance(value, list | tuple) else value


def _layout(slot: Slot, g: torch.dtype, count: int, measured: bool) -> Layout:
    tensors = [slot.anchor] if isinstance(slot.anchor, Tensor) else []
    dtypes = (slot.x.dtype, g, *(buffer.dtype for buffer in slot.buffers.values()), *(t.dtype for t in tensors))
    anchor = "tensor" if isinstance(slot.anchor, Tensor) else slot.anchor
    group = fixed_settings(slot.group)
    place = (slot.dtype, slot.x.device, anchor, slot.draws)
    scalars = tuple(RULES[slot.group["rule"]].scalars(1.0, slot.group))
    return Layout(group, slot.names, scalars, dtypes, *place, measured, count)


def _words(slots: Sequence[Slot], seed: int, step: int) -> Tensor:
    """(tensors, drawn things, 3) int64: two words, and the number of the first element."""
    return torch.tensor([[[*words_of(key), slot.elements] for key in slot.keys(seed, step)] for slot in slots])


@cache
def _compiled(layout: Layout) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    width = len(layout.dtypes)

    def run(arguments: list[Tensor]) -> list[Tensor]:
        values = arguments[0]
        words = arguments[1] if layout.draws else None
        tensors = arguments[1 + layout.draws :]
        now = Now(values[0], values[1], {name: values[2 + i] for i, name in enumerate(layout.scalars)})
        found = []
        for i in range(layout.tensors):
            own = tensors[i * width : (i + 1) * width]
            found.append(_step_one(own, layout, None if words is None else words[i], now))
        return [one for one in found if one is not None]

    return _compile(run, _examples(layout))


def _step_one(own: Sequence[Tensor], layout: Layout, words: Tensor | None, now: Now) -> Tensor | None:
    p, g, *buffers = own
    anchor = buffers.pop() if layout.anchor == "tensor" else layout.anchor
    assert not isinstance(anchor, str)
    first: int | Tensor = 0 if words is None else words[0, 2]
    part = Part(p, g, dict(zip(layout.buffers, buffers, strict=True)), anchor, first)
    whole = Whole(dict(layout.group), layout.dtype, p.shape[0], words)
    return advance([part], whole, now, measured=layout.measured)


def _examples(layout: Layout) -> list[Tensor]:
    """Arguments of sizes that all differ, so that none is taken for another."""
    made = [torch.ones(2 + len(layout.scalars), dtype=layout.dtype, device=layout.device)]
    if layout.draws:
        shape = (layout.tensors, 2 + len(layout.buffers), 3)
        made.append(torch.ones(shape, dtype=torch.int64, device=layout.device))
    for i in range(layout.tensors):
        made += [torch.ones(100 + i, dtype=dtype, device=layout.device) for dtype in layout.dtypes]
    return made


def _compile(function: Callable[..., Any], examples: list[Tensor]) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """Inductor's function for `function`, which takes a list of tensors and empties it."""
    global compilations
    import torch.fx.experimental._config as symbolic_shapes
    from torch._guards import TracingContext, detect_fake_mode, tracing
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch.fx.experimental.proxy_tensor import make_fx

    compilations += 1
    made: list[Callable[[list[Tensor]], Sequence[Tensor]]] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        made.append(compile_fx_inner(*args, **kwargs))
        return made[-1]

    with torch.no_grad(), symbolic_shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        graph = make_fx(function, tracing_mode="symbolic")(examples)
        inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        with tracing(TracingContext(detect_fake_mode(inputs))):
            compile_fx(graph, inputs, inner_compile=keep, config_patches=CONFIG)
    return made[0]
