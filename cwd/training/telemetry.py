"""What the paper's figures need from inside the optimizer's step: mask ratio and RMS norms, per tensor and overall
(Figures 7, 11-13).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cwd.optim import Observation
from cwd.optim.decay import agreement_ratio

FIELDS = ("mask_ratio", "strict_ratio", "rms_x", "rms_u", "rms_g")


class Telemetry:
    """Collects one step's observations. Give :meth:`collect` to the optimizer as its observer on the steps that are to
    be measured.

    Per tensor: ``mask_ratio``, the fraction of coordinates with u * x >= 0, where cautious decay acts (or would act: it
    is measured under every decay mode); ``strict_ratio``, with u * x > 0, Figure 7's definition; ``rms_x``, ``rms_u``,
    ``rms_g``, root mean squares of parameter (before the step), update and gradient (after clipping).
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._values: list[Tensor] = []

    def collect(self, seen: Observation) -> None:
        """Takes one tensor's measures; nothing leaves the device yet."""
        x, u, g = seen.x, seen.u, seen.g
        strict = ((u.sign() * x.sign()) > 0).sum().to(x.dtype) / x.numel()
        rms = [tensor.square().mean().sqrt() for tensor in (x, u, g)]
        self._names.append(seen.name)
        self._sizes.append(x.numel())
        self._values.append(torch.stack([agreement_ratio(u, x), strict, *rms]).double())

    def take(self) -> dict[str, Any]:
        """``{"overall": {field: value}, "tensors": {name: {field: value}}}`` of what was collected, and starts anew."""
        rows = torch.stack(self._values).tolist()
        tensors = {name: dict(zip(FIELDS, row, strict=True)) for name, row in zip(self._names, rows, strict=True)}
        overall = {field: self._overall(field, [row[i] for row in rows]) for i, field in enumerate(FIELDS)}
        self._names, self._sizes, self._values = [], [], []
        return {"overall": overall, "tensors": tensors}

    def _overall(self, field: str, values: list[float]) -> float:
        """The measure over all elements together: ratios average, squares of RMS average."""
        total = sum(self._sizes)
        if field.startswith("rms"):
            return math.sqrt(sum(value**2 * size for value, size in zip(values, self._sizes, strict=True)) / total)
        return sum(value * size for value, size in zip(values, self._sizes, strict=True)) / total
