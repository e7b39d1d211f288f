"""Steps without a compiler: a tensor in parts, or many small tensors laid end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from cwd.optim.decay import MODES
from cwd.optim.directions import RULES
from cwd.optim.orthogonal import stacks
from cwd.optim.slots import Slot, add_up
from cwd.optim.update import Now, Part, Whole, advance, direction, finish, sums_of

PIECE = 2**17  # elements stepped at once on a CPU: temporaries stay in the cache
LARGE_PIECE = 2**24  # on other devices, where calls are what costs
SMALL = 2**15  # elements; larger tensors are no faster stepped together, on a CPU
TOGETHER = 2**16  # elements stepped together at most
COUPLED = 2**20  # elements on a process whose messages may always go together


def step_alone(slot: Slot, g: Tensor, whole: Whole, now: Now, *, measured: bool = False) -> Tensor | None:
    """Steps one tensor; returns the sums of its measures if `measured`."""
    if not RULES[slot.group["rule"]].matrices_only:
        return advance(list(_pieces(slot, g)), whole, now, measured=measured)
    parts, directions = _cut(slot, *direction(slot.part(g), whole, now))
    found = finish(parts, directions, whole, now, sums_of(parts, directions, whole, now), measured=measured)
    return torch.stack(found).sum(0) if measured else None


def is_coupled(slot: Slot) -> bool:
    """Whether a step needs what other processes have of the tensor."""
    rule, mode = RULES[slot.group["rule"]], MODES[slot.group["decay"]]
    return slot.total is not None and (rule.matrices_only or mode.sums is not None)


def gather_coupled(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Runs of slots to be stepped with the same messages, the same on all processes. u of a run takes no more memory
    on a process than the largest tensor would as a whole, or COUPLED elements.
    """
    ordered = sorted(slots, key=lambda slot: -slot.size)
    parts = max((slot.total.parts for slot in slots if slot.total is not None), default=1)
    largest = max((slot.size for slot in slots), default=0)
    return _runs(ordered, [slot.size for slot in ordered], parts * max(largest, COUPLED))


def step_coupled(
    slots: Sequence[Slot], gs: Sequence[Tensor], wholes: Sequence[Whole], now: Now, *, measured: bool = False
) -> list[Tensor]:
    """Steps a run of :func:`gather_coupled`, with one all-reduce for all of it; returns the sums of the measures of
    each, here, if `measured`.
    """
    begun = []
    if RULES[slots[0].group["rule"]].matrices_only:
        parts = [slot.part(g) for slot, g in zip(slots, gs, strict=True)]
        seen = directions_of(slots, parts, wholes, now)
        begun = [_cut(slot, *one) for slot, one in zip(slots, seen, strict=True)]
    else:
        for slot, g, whole in zip(slots, gs, wholes, strict=True):
            pieces = list(_pieces(slot, g))
            begun.append((pieces, [direction(piece, whole, now) for piece in pieces]))
    sums = [sums_of(*one, whole, now) for one, whole in zip(begun, wholes, strict=True)]
    sums = add_up(sums, [slot.total for slot in slots])
    found = [
        finish(*one, whole, now, own, measured=measured) for one, whole, own in zip(begun, wholes, sums, strict=True)
    ]
    return [torch.stack(of).sum(0) for of in found] if measured else []


def directions_of(
    slots: Sequence[Slot], parts: Sequence[Part], wholes: Sequence[Whole], now: Now
) -> list[tuple[Tensor, Tensor]]:
    """:func:`direction` of slots of one group, each as one part; for matrices that other processes have parts of,
    together with them.
    """
    if slots[0].total is None or not RULES[slots[0].group["rule"]].matrices_only:
        return [direction(part, whole, now) for part, whole in zip(parts, wholes, strict=True)]
    from cwd.optim.sharded_muon import directions

    return directions(slots, parts, wholes, now)


def is_small(slot: Slot) -> bool:
    """Whether the tensor may be stepped with others: small, and nothing about its step asks for it by itself."""
    alone = MODES[slot.group["decay"]].sums is not None or slot.draws or isinstance(slot.anchor, Tensor)
    return not alone and slot.plain and not is_coupled(slot) and 0 < slot.x.numel() <= SMALL


def gather_small(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Runs of small slots of one set: of at most TOGETHER elements; of matrices, the stacks that pay."""
    if slots and RULES[slots[0].group["rule"]].matrices_only:
        dtype = slots[0].group["ns_dtype"]
        return ([slots[i] for i in indices] for indices in stacks([slot.x for slot in slots], dtype))
    return _runs(slots, [slot.x.numel() for slot in slots], TOGETHER)


def _runs(slots: Sequence[Slot], sizes: Sequence[int], most: int) -> Iterator[list[Slot]]:
    """Runs whose sizes add up to `most`, or of one slot."""
    run: list[Slot] = []
    total = 0
    for slot, size in zip(slots, sizes, strict=True):
        total += size
        if total > most and run:
            yield run
            run, total = [], size
        run.append(slot)
    if run:
        yield run


def step_together(slots: Sequence[Slot], gs: Sequence[Tensor], whole: Whole, now: Now) -> None:
    """One pass over many small tensors: matrices stacked, others laid end to end. There, calls are what costs."""
    stacked = RULES[slots[0].group["rule"]].matrices_only
    join = torch.stack if stacked else _flatten_dense_tensors
    split = _unstack if stacked else _unflatten_dense_tensors
    xs = [slot.x for slot in slots]
    buffers = {name: [slot.buffers[name] for slot in slots] for name in slots[0].names}
    joined = {name: join(tensors) for name, tensors in buffers.items()}
    p = join(xs)
    advance([Part(p, join(list(gs)), joined, slots[0].anchor, 0)], whole, now)
    torch._foreach_copy_(xs, split(p, xs))
    for name, tensors in buffers.items():
        torch._foreach_copy_(tensors, split(joined[name], xs))


def _unstack(stack: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return stack.unbind()


def _pieces(slot: Slot, g: Tensor) -> Iterator[Part]:
    """The tensor in parts that can be computed one by one."""
    if not slot.plain or slot.x.numel() <= _size(slot.x):
        yield slot.part(g)
        return
    xs, gs = _split(slot.x), _split(g)
    anchors = _split(slot.anchor) if isinstance(slot.anchor, Tensor) else [slot.anchor] * len(xs)
    buffers = {name: _split(buffer) for name, buffer in slot.buffers.items()}
    start = 0
    for i, x in enumerate(xs):
        own = {name: tensors[i] for name, tensors in buffers.items()}
        where = slot.elements + start if isinstance(slot.elements, int) else slot.elements[start : start + x.numel()]
        yield Part(x, gs[i], own, anchors[i], where)
        start += x.numel()


def _cut(slot: Slot, u: Tensor, g: Tensor) -> tuple[list[Part], list[tuple[Tensor, Tensor]]]:
    """The tensor in parts, and (u, g) of each, where they were found for the whole of it."""
    parts = list(_pieces(slot, g))
    return parts, [(u, g)] if len(parts) == 1 else list(zip(_split(u), _split(g), strict=True))


def _split(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.reshape(-1).split(_size(tensor))


def _size(tensor: Tensor) -> int:
    return PIECE if tensor.device.type == "cpu" else LARGE_PIECE
