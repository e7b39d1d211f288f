"""How much memory training takes on one device: what lies there all the time, and what comes and goes.

Weights, gradients and optimizer state are float32, whatever the precision of the computation, and follow from the
parameters' shapes and from who gets which rule (cwd.optim). Activations are those of the model's own code, on fake
tensors (cwd.planning.trace). Bytes are those that are asked for; what an allocator adds is left to devices.USABLE.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cwd.optim import RULES, GroupPattern, assign_groups
from cwd.optim.decay import MODES
from cwd.optim.eager import LARGE_PIECE, PIECE, SMALL
from cwd.optim.orthogonal import ACCELERATOR_BYTES, STACK_BYTES
from cwd.planning.shapes import Shape
from cwd.planning.trace import trace_pass

FLOAT, HALF = 4, 2  # bytes
SHARDINGS = ("none", "hybrid", "full")
# Temporaries of an elementwise step without a compiler, in pieces of a tensor (scripts/benchmark.py memory).
PIECES, PIECES_DRAWN = 5, 8
STACKED = 8  # small matrices that Muon steps together: weights, gradients, momentum and what one matrix takes, stacked


@dataclass(frozen=True)
class Held:
    """A parameter tensor: its shape, its rule ("" if it is frozen), its decay mode, and the number of its group."""

    name: str
    shape: tuple[int, ...]
    rule: str
    mode: str
    group: int
    layer: bool  # of one of the layers that are gathered one by one under full sharding

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, ...]:
        """Its shape as Muon sees it: a convolution's kernel is one matrix."""
        return (self.shape[0], math.prod(self.shape[1:])) if len(self.shape) == 4 else self.shape


@dataclass(frozen=True)
class Setting:
    """How a run is laid out on the devices.

    Attributes:
        sharding: none (every device holds everything), full (all devices divide it), hybrid (those of a node do).
        devices, per_node: that train one run together, and those of them that share a node.
        micro_batch: sequences or images at once on one device.
        accumulates: whether several micro-batches make an update.
        on_cpu: whether the step is cut as on a CPU.
    """

    sharding: str = "none"
    devices: int = 1
    per_node: int = 1
    micro_batch: int = 1
    accumulates: bool = False
    on_cpu: bool = False

    @property
    def parts(self) -> int:
        """Into how many parts weights, gradients and state are divided."""
        return {"none": 1, "full": self.devices, "hybrid": min(self.devices, self.per_node)}[self.sharding]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights, gradients, state: there all the time from the first step on, but for gradients that are born anew in
            each backward pass. Frozen weights have neither of the others.
        average: the second copy of the weights that an average of them is.
        activations: at the peak of the forward and backward pass.
        copies: beside them: weights in bfloat16, masks, gradients being born.
        sharing: what several devices add: gathered layers and their gradients, or buckets of gradients.
        step: the most that the optimizer's step takes, the laying out of flat buffers before the first one included.
        peak: the most of all of it at one time.
    """

    weights: int
    gradients: int
    state: int
    average: int
    activations: int
    copies: int
    sharing: int
    step: int
    peak: int


def memory_of(
    shape: Shape, held: Sequence[Held], setting: Setting, *, averaged: bool = False, compiled: bool = False
) -> Memory:
    """The memory of a run.

    Args:
        shape: of the pass; its ``held`` is set here.
        held: from :func:`parameters_of`.
        averaged: whether an average of the weights is kept (recipe.ema).
        compiled: whether the elementwise steps are (machine.compile).
    """
    parts, trained = setting.parts, learned(held)
    weights = FLOAT * sum(one.elements for one in held)
    state = sum(state_bytes(one) for one in held)
    gradients = FLOAT * sum(one.elements for one in trained)
    average = weights if averaged else 0
    step = step_bytes(held, setting, compiled)
    if setting.sharding != "none":
        activations = trace_pass(replace(shape, held=frozenset())).activations(setting.micro_batch)
        sharing = _gathered(held, shape.bf16)
        resting = -(-(weights + gradients + state) // parts)
        peak = resting + max(activations + sharing, step)
        weights, gradients, state = (-(-size // parts) for size in (weights, gradients, state))
        return Memory(weights, gradients, state, 0, activations, 0, sharing, step, peak)
    flat = flat_groups(held)
    kept = frozenset(one.name for one in trained if setting.accumulates or one.group in flat)
    copies, activations = trace_pass(replace(shape, held=kept)).peak(setting.micro_batch)
    sharing = gradients if setting.devices > 1 else 0
    before = weights + state + average + sharing
    in_pass = before + FLOAT * sum(one.elements for one in trained if one.name in kept) + copies + activations
    peak = max(in_pass, before + gradients + step)
    return Memory(weights, gradients, state, average, activations, copies, sharing, step, peak)


def parameters_of(
    shape: Shape, optimizer: Mapping[str, Any], mode: str, beside: Sequence[str] = ()
) -> tuple[Held, ...]:
    """Every parameter of the model with its rule and mode; those that are frozen first.

    Args:
        optimizer: the configuration's section.
        mode: of the decay, where the group decays.
        beside: globs of what the model itself keeps from Muon.
    """
    patterns = patterns_of(optimizer, beside)
    most = optimizer.get("dim_threshold") or math.inf  # a longer side than this goes to AdamW, in a group of its own
    with torch.device("meta"):
        model = shape.build()
    inside = {
        id(parameter)
        for module in model.modules()
        if type(module).__name__ in (getattr(model, "_no_split_modules", None) or ())
        for parameter in module.parameters()
    }
    assigned = assign_groups(model.named_parameters(), patterns, lr=1.0, weight_decay=1.0, decay=mode)
    frozen = tuple(
        Held(name, tuple(p.shape), "", "none", len(assigned), id(p) in inside)
        for name, p in model.named_parameters()
        if not p.requires_grad
    )
    return frozen + tuple(
        Held(name, tuple(p.shape), "adamw", group["decay"], -1 - number, id(p) in inside)
        if group["rule"] == "muon" and max(p.shape) > most
        else Held(name, tuple(p.shape), group["rule"], group["decay"], number, id(p) in inside)
        for number, group in enumerate(assigned)
        for name, p in group["params"]
    )


def patterns_of(optimizer: Mapping[str, Any], beside: Sequence[str] = ()) -> list[GroupPattern]:
    """The configuration's groups as cwd.optim takes them, after what the model keeps from Muon; with the rules' own
    hyperparameters, which take no memory.
    """
    first = [GroupPattern(beside, "adamw")] if optimizer["name"] == "muon" and beside else []
    groups = (GroupPattern(one["match"], one["rule"], one["decay"], one["lr_multiple"]) for one in optimizer["groups"])
    return [*first, *groups]


def learned(held: Sequence[Held]) -> list[Held]:
    """Those that are not frozen."""
    return [one for one in held if one.rule]


def state_bytes(one: Held) -> int:
    """Of the optimizer's state of a tensor: as many float32 buffers of its shape as its rule has."""
    return FLOAT * one.elements * len(RULES[one.rule].buffers) if one.rule else 0


def flat_groups(held: Sequence[Held]) -> frozenset[int]:
    """The groups that the optimizer lays into flat buffers, so that their gradients stay; see cwd.optim.flat."""
    members: dict[int, list[Held]] = {}
    for one in learned(held):
        members.setdefault(one.group, []).append(one)
    return frozenset(
        number
        for number, group in members.items()
        if len(group) > 1
        and not RULES[group[0].rule].matrices_only
        and MODES[group[0].mode].sums is None
        and not MODES[group[0].mode].draws
    )


def step_bytes(held: Sequence[Held], setting: Setting, compiled: bool) -> int:
    """The most that a step takes beside weights, gradients and state."""
    held = learned(held)
    flat = flat_groups(held) if setting.sharding == "none" else frozenset()
    buffers = [sum(one.elements for one in held if one.group == number) for number in flat]
    matrices = [one for one in held if RULES[one.rule].matrices_only]
    most = max((_orthogonalising(one, setting) for one in matrices), default=0)
    most = max(most, STACKED * _stack([one for one in matrices if one.elements <= SMALL], setting))
    if not compiled:
        alone = [one for one in held if not RULES[one.rule].matrices_only and one.group not in flat]
        sizes = [(elements, False, False) for elements in buffers]
        sizes += [(-(-one.elements // setting.parts), *_needs(one)) for one in alone]
        most = max([most, *(_elementwise(*size, setting.on_cpu) for size in sizes)])
    return FLOAT * max(most, *buffers, 0)  # a group is copied into its buffer once, before the first step


def _stack(matrices: Sequence[Held], setting: Setting) -> int:
    """Elements of the largest stack: matrices of one shape, as many as may be stepped together."""
    alike = Counter[tuple[int, ...]]()
    for one in matrices:
        alike[one.matrix] += one.elements
    most = (STACK_BYTES if setting.on_cpu else ACCELERATOR_BYTES) // FLOAT
    return min(max(alike.values(), default=0), most)


def _needs(one: Held) -> tuple[bool, bool]:
    """Whether its mode looks at the tensor as a whole, and whether it draws."""
    return MODES[one.mode].sums is not None, MODES[one.mode].draws


def _elementwise(elements: int, whole: bool, draws: bool, on_cpu: bool) -> int:
    piece = min(elements, PIECE if on_cpu else LARGE_PIECE)
    return (PIECES_DRAWN if draws else PIECES) * piece + elements * whole


def _orthogonalising(one: Held, setting: Setting) -> int:
    """Elements that Muon's step of a matrix takes: the look-ahead, two matrices of its shape, two squares; where it is
    divided, u and what is sent and received as well (cwd.optim.orthogonal, sharded_muon).
    """
    side = min(one.matrix[-2:])
    sent = 3 * one.elements if setting.parts > 1 else 0
    return 3 * one.elements + 2 * side * side + sent


def _gathered(held: Sequence[Held], bf16: bool) -> int:
    """Under full sharding: what is outside of the layers, and two layers (the one that computes and the next), whole,
    with their gradients before these are divided again.
    """
    outside = sum(one.elements for one in held if not one.layer)
    layers: dict[str, int] = {}
    for one in held:
        if one.layer:
            number = next(part for part in one.name.split(".") if part.isdigit())
            layers[number] = layers.get(number, 0) + one.elements
    largest = max(layers.values(), default=0)
    return (outside + 2 * largest) * ((HALF if bf16 else FLOAT) + FLOAT)
