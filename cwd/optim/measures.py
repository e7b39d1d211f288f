"""What a step looked like, tensor by tensor: mask ratios, and root mean squares of x, u, g and the decay (the paper's
Figures 7 and 11 to 13).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cwd.optim.decay import agrees

FIELDS = ("mask_ratio", "strict_ratio", "decay_ratio", "rms_x", "rms_u", "rms_g")


def measure(x: Tensor, y: Tensor, u: Tensor, g: Tensor, decay: Tensor) -> Tensor:
    """Sums over the elements, float64, (6,): coordinates with u * y >= 0, and > 0; squares of x, u, g and the decay.

    Args:
        x, y, u, g: of one shape: parameter before the step, the same less its anchor, update, gradient descended.
        decay: weight_decay * M * y, of that shape or a number's.
    """
    strict = u.sign() * y > 0
    squares = [tensor.square().sum(dtype=torch.float64) for tensor in (x, u, g, decay.expand(x.shape))]
    return torch.stack([agrees(u, y).sum(dtype=torch.float64), strict.sum().double(), *squares])


def summarize(sums: Sequence[float], size: int) -> dict[str, float]:
    """The measures of a tensor of `size` elements, or of many together, by FIELDS, from :func:`measure`'s sums.

    ``mask_ratio``: the fraction of coordinates with u * (x - a) >= 0, where cautious decay acts, or would act: it is
    measured under every mode. ``strict_ratio``: with > 0, Figure 7's definition. ``decay_ratio``: RMS of the decay term
    over RMS of u, 0 if u is. ``rms_x``, ``rms_u``, ``rms_g``: root mean squares of the parameter before the step, the
    update, the gradient.
    """
    agree, strict, x, u, g, decay = sums
    ratio = math.sqrt(decay / u) if u > 0 else 0.0
    values = (agree / size, strict / size, ratio, *(math.sqrt(square / size) for square in (x, u, g)))
    return dict(zip(FIELDS, values, strict=True))
