"""Decay modes: which coordinates decay, and how much of the decay they get.

A mode gives the factor M of the decay term ``weight_decay * M * x``: a tensor, a 0-D tensor or a number. Modes
that look at a tensor as a whole first take sums over it, which may come from parts of the tensor, or from several
devices, and be added up. x is the value before the step, less the anchor; u the rule's final update, g the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cwd.optim.draws import Elements, Words, draw

Factor = Tensor | float


class Context(NamedTuple):
    """What else a mode may ask for, about the tensor that x, u and g are, or are a part of.

    ``sums`` are the mode's own, added up over the whole tensor; ``size`` is its number of elements.
    """

    lr: float | Tensor
    size: int | Tensor
    words: Words
    elements: Elements = 0
    sums: Tensor | None = None


class Mode(NamedTuple):
    """A decay mode. ``factor(x, u, g, context)`` is M; ``sums(x, u, g, context)`` the vector that it needs, if any.

    ``projects``: the decay acts on what the plain step arrived at, x - lr * u, and is not multiplied by lr.
    """

    factor: Callable[[Tensor, Tensor, Tensor, Context], Factor]
    sums: Callable[[Tensor, Tensor, Tensor, Context], Tensor] | None = None
    draws: bool = False
    projects: bool = False

    def __call__(self, x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
        """M of a whole tensor."""
        return self.factor(
            x, u, g, context if self.sums is None else context._replace(sums=self.sums(x, u, g, context))
        )


def agrees(u: Tensor, x: Tensor) -> Tensor:
    """1 where u and x do not have strictly opposite signs, else 0, of x's dtype: the paper's 1[u * x >= 0] (section 3,
    equation 1).

    The sign of u is taken, not the product: 1e-30 * -1e-30 underflows to -0.0, which is ">= 0". A zero u or x agrees.
    """
    return u.sign().mul_(x).ge_(0)  # no bool tensor: to multiply with one takes a CPU seven times as long


def count_agreeing(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Tensor:
    """The number of coordinates on which cautious decay acts: a vector of one, float64."""
    return agrees(u, x).sum(dtype=torch.float64).view(1)


def none(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """No decay."""
    return 0.0


def decoupled(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Decay every coordinate (Loshchilov & Hutter 2019)."""
    return 1.0


def cautious(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Decay where the update agrees in sign with the parameter (the paper's method, Algorithm 1)."""
    return agrees(u, x)


def gradient(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Decay where the gradient, instead of the update, agrees in sign with the parameter (Table 2)."""
    return agrees(g, x)


def random(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Decay a random set of coordinates, redrawn each step, with the ratio that cautious would have had (Table 2)."""
    return (draw(x.shape, context.words, context.elements, x.device) < scaled(x, u, g, context)).to(x.dtype)


def inner_product(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Decay the whole tensor if <u, x> >= 0, else none of it (Table 5). Summed in float64, where float32 products are
    exact.
    """
    return _sums(context)[0] >= 0


def opposite(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Decay exactly where cautious does not: a control that the paper lacks."""
    return 1 - agrees(u, x)


def scaled(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Decay every coordinate, by the cautious ratio: as much decay, without the choice. A control that the paper
    lacks.
    """
    return _sums(context)[0].to(x.dtype) / context.size


def spd(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Factor:
    """Selective Projection Decay (Tian et al., arXiv 2411.01713): if <g, x> > 0, the share of the distance to the
    anchor by which the step grew it; else nothing. weight_decay 1 takes the tensor back to the distance that it had.
    """
    towards, before, after = _sums(context)
    growth = (after.sqrt() - before.sqrt()).clamp(min=0) / after.sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(towards > 0, growth, torch.zeros_like(growth)).to(x.dtype)


def _sums(context: Context) -> Tensor:
    assert context.sums is not None
    return context.sums


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1).double(), b.reshape(-1).double())


def _distances(x: Tensor, u: Tensor, g: Tensor, context: Context) -> Tensor:
    """<g, x> and the squared norms of x before and after the plain step."""
    after = x - context.lr * u
    return torch.stack([_dot(g, x), _dot(x, x), _dot(after, after)])


MODES: dict[str, Mode] = {
    "none": Mode(none),
    "decoupled": Mode(decoupled),
    "cautious": Mode(cautious),
    "random": Mode(random, sums=count_agreeing, draws=True),
    "gradient": Mode(gradient),
    "inner_product": Mode(inner_product, sums=lambda x, u, g, context: _dot(u, x).view(1)),
    "opposite": Mode(opposite),
    "scaled": Mode(scaled, sums=count_agreeing),
    "spd": Mode(spd, sums=_distances, projects=True),
}


SCHEDULES: dict[str, Callable[[float, Mapping[str, Any]], float]] = {
    "constant": lambda done, group: 1.0,
    "corrected": lambda done, group: float(group["lr"]) / group["lr_max"],
    "linear": lambda done, group: 1 - done,
    "cosine": lambda done, group: (1 + math.cos(math.pi * done)) / 2,
}


def lambda_of(group: Mapping[str, Any], step: int) -> float | Tensor:
    """The weight decay of update number `step`, from 1: the group's ``weight_decay`` under its ``decay_schedule``.

    constant: as it is. corrected: times lr / ``lr_max``, so that x decays by lr^2 / lr_max * weight_decay (Defazio,
    arXiv 2506.02285: AdamC; for weights that a normalization follows). linear, cosine: down to zero over
    ``decay_steps`` updates, the first of which has all of it.
    """
    if group["decay_schedule"] == "constant":
        return group["weight_decay"]
    done = min(1.0, (step - 1) / (group["decay_steps"] or 1))
    return group["weight_decay"] * SCHEDULES[group["decay_schedule"]](done, group)
