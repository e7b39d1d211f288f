"""The equation that joins a rule and a mode: x <- x - lr * (u + weight_decay * M(u, x - a, g) * (x - a)).

Every path runs it: eager on parts of a tensor, on many small tensors laid end to end, and compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cwd.optim.decay import MODES, Context
from cwd.optim.directions import RULES, Direction, Hyper, Scalars
from cwd.optim.draws import Elements, Words, round_stochastically
from cwd.optim.measures import measure

Anchor = Tensor | float | None


class Now(NamedTuple):
    """The numbers of one step of a group: Python's, or 0-D tensors in a graph."""

    lr: float | Tensor
    weight_decay: float | Tensor
    scalars: Scalars


class Part(NamedTuple):
    """A tensor, or a part of it: parameter, gradient and state as they are stored, all of one shape."""

    p: Tensor
    g: Tensor
    buffers: dict[str, Tensor]
    anchor: Anchor
    elements: Elements  # where in the tensor the part begins


class Whole(NamedTuple):
    """What the parts of a tensor share."""

    group: Hyper
    dtype: torch.dtype  # of the computation
    size: int | Tensor  # elements of the whole tensor
    words: Sequence[Words] | Tensor | None  # for the mode, the parameter, and each buffer; none where nothing is drawn


def advance(parts: Sequence[Part], whole: Whole, now: Now, *, measured: bool = False) -> Tensor | None:
    """Steps one tensor, given in parts, and its state in place. Temporaries are a part's, and u where the mode looks at
    the tensor as a whole.

    Returns:
        The sums of :func:`cwd.optim.measures.measure` if `measured`.
    """
    mode = MODES[whole.group["decay"]]
    if mode.sums is None:
        seen = (_finish(part, *direction(part, whole, now), whole, now, None, measured) for part in parts)
        found = [one for one in seen if one is not None]
    else:
        directions = [direction(part, whole, now) for part in parts]
        found = finish(parts, directions, whole, now, sums_of(parts, directions, whole, now), measured=measured)
    return torch.stack(found).sum(0) if measured else None


def direction(part: Part, whole: Whole, now: Now, rule: Direction | None = None) -> tuple[Tensor, Tensor]:
    """u, and g as the rule saw it, in the dtype of the computation. Updates the state.

    Args:
        rule: what to call in place of the group's rule.
    """
    group, dtype = whole.group, whole.dtype
    g = part.g.to(dtype)
    if group["maximize"]:
        g = -g
    state = {name: buffer.to(dtype) for name, buffer in part.buffers.items()}
    u = (rule or RULES[group["rule"]].direction)(g, state, now.scalars, group)
    for i, (name, buffer) in enumerate(part.buffers.items()):
        _store(buffer, state[name], part, whole, 2 + i)
    return u, g


def sums_of(
    parts: Sequence[Part], directions: Sequence[tuple[Tensor, Tensor]], whole: Whole, now: Now
) -> Tensor | None:
    """The sums that the mode takes of a tensor, whose parts' (u, g) are known; None if it takes none."""
    sums = MODES[whole.group["decay"]].sums
    if sums is None:
        return None
    seen = [
        sums(_less_anchor(part.p.to(whole.dtype), part.anchor), u, g, _context(part, whole, now, None))
        for part, (u, g) in zip(parts, directions, strict=True)
    ]
    return seen[0] if len(seen) == 1 else torch.stack(seen).sum(0)


def finish(
    parts: Sequence[Part],
    directions: Sequence[tuple[Tensor, Tensor]],
    whole: Whole,
    now: Now,
    sums: Tensor | None,
    *,
    measured: bool = False,
) -> list[Tensor]:
    """The decay and the step of a tensor's parts, whose (u, g) and whose mode's sums are known; returns what was
    measured of each.
    """
    seen = (_finish(part, u, g, whole, now, sums, measured) for part, (u, g) in zip(parts, directions, strict=True))
    return [one for one in seen if one is not None]


def _finish(
    part: Part, u: Tensor, g: Tensor, whole: Whole, now: Now, sums: Tensor | None, measured: bool
) -> Tensor | None:
    mode = MODES[whole.group["decay"]]
    x = part.p.to(whole.dtype)
    y = _less_anchor(x, part.anchor)
    factor = mode.factor(y, u, g, _context(part, whole, now, sums))
    if isinstance(factor, float) and factor == 0:  # no decay: not 0 * x, which is no number for an infinite x
        decay, after = torch.zeros((), dtype=x.dtype, device=x.device), x - now.lr * u
    elif mode.projects:
        after = x - now.lr * u
        decay = (factor * _less_anchor(after, part.anchor)).mul_(now.weight_decay)
        after = after - decay
    else:
        decay = (factor * y).mul_(now.weight_decay)
        after = x - (u + decay).mul_(now.lr)
    found = measure(x, y, u, g, decay / (now.lr + (now.lr == 0)) if mode.projects else decay) if measured else None
    _store(part.p, after, part, whole, 1)
    return found


def _store(target: Tensor, value: Tensor, part: Part, whole: Whole, number: int) -> None:
    if value is target:  # the rule worked on it in place
        return
    if whole.group["stochastic_rounding"] and target.dtype == torch.bfloat16:
        assert whole.words is not None
        value = round_stochastically(value, whole.words[number], part.elements)
    target.copy_(value)


def _less_anchor(x: Tensor, anchor: Anchor) -> Tensor:
    return x if anchor is None else x - anchor


def _context(part: Part, whole: Whole, now: Now, sums: Tensor | None) -> Context:
    words: Words = (0, 0) if whole.words is None else whole.words[0]
    return Context(now.lr, whole.size, words, part.elements, sums)
