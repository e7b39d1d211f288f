"""The equation that joins a rule and a mode: x <- x - lr * (u + weight_decay * M(u, x, g) * x). Every path runs it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cwd.optim.decay import MODES, Words
from cwd.optim.directions import RULES, Hyper, Scalars, State


class Member(NamedTuple):
    """A parameter that is to be stepped now."""

    number: int  # among all parameters of the optimizer
    name: str
    p: Tensor
    g: Tensor
    state: State
    group: Hyper
    step: float  # number of this update, from 1
    dtype: torch.dtype  # of the computation


def update(
    x: Tensor,
    g: Tensor,
    state: State,
    scalars: Scalars,
    lr: float | Tensor,
    weight_decay: float | Tensor,
    words: Words,
    group: Hyper,
) -> tuple[Tensor, Tensor, Tensor]:
    """One tensor's step, out of place but for `state`.

    Args:
        x, g: parameter and gradient, of one shape and floating dtype.
        state: the rule's buffers, same shape; updated.
        scalars: the rule's numbers for this step; `lr`, `weight_decay` likewise numbers or 0-D tensors.
        words: seed of the modes that draw.
        group: the names of rule and mode, ``maximize``, and the rule's hyperparameters.

    Returns:
        x after the step, u, and g as the rule saw it.
    """
    if group["maximize"]:
        g = -g
    u = RULES[group["rule"]].direction(g, state, scalars, group)
    factor = MODES[group["decay"]](x, u, g, words)
    if isinstance(factor, float) and factor == 0:  # no decay: not 0 * x, which is no number for an infinite x
        return x - lr * u, u, g
    return x - lr * (u + weight_decay * (factor * x)), u, g
