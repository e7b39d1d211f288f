"""Steps without a compiler: a tensor in parts, or many small tensors laid end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from cwd.optim.decay import MODES
from cwd.optim.directions import RULES
from cwd.optim.orthogonal import stacks
from cwd.optim.slots import Slot
from cwd.optim.update import Now, Part, Whole, advance, direction, finish

PIECE = 2**17  # elements stepped at once on a CPU: temporaries stay in the cache
LARGE_PIECE = 2**24  # on other devices, where calls are what costs
SMALL = 2**15  # elements; larger tensors are no faster stepped together, on a CPU
TOGETHER = 2**16  # elements stepped together at most


def step_alone(slot: Slot, g: Tensor, whole: Whole, now: Now, *, measured: bool = False) -> Tensor | None:
    """Steps one tensor; returns the sums of its measures if `measured`."""
    if not RULES[slot.group["rule"]].matrices_only:
        return advance(list(_pieces(slot, g)), whole, now, measured=measured)
    u, seen = direction(slot.part(g), whole, now)
    parts = list(_pieces(slot, seen))
    if len(parts) > 1:
        found = finish(parts, list(zip(_split(u), _split(seen), strict=True)), whole, now, measured=measured)
    else:
        found = finish(parts, [(u, seen)], whole, now, measured=measured)
    return torch.stack(found).sum(0) if measured else None


def is_small(slot: Slot) -> bool:
    """Whether the tensor may be stepped with others: small, and nothing about its step asks for it by itself."""
    alone = MODES[slot.group["decay"]].sums is not None or slot.draws or isinstance(slot.anchor, Tensor)
    return not alone and slot.plain and slot.total is None and slot.x.numel() <= SMALL


def gather_small(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Runs of small slots of one set: of at most TOGETHER elements; of matrices, the stacks that pay."""
    if slots and RULES[slots[0].group["rule"]].matrices_only:
        dtype = slots[0].group["ns_dtype"]
        yield from ([slots[i] for i in indices] for indices in stacks([slot.x for slot in slots], dtype))
        return
    run: list[Slot] = []
    size = 0
    for slot in slots:
        size += slot.x.numel()
        if size > TOGETHER and run:
            yield run
            run, size = [], slot.x.numel()
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


def _split(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.reshape(-1).split(_size(tensor))


def _size(tensor: Tensor) -> int:
    return PIECE if tensor.device.type == "cpu" else LARGE_PIECE
