"""What training.precision means: the dtype of the weights, and that in which a forward pass computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# fp64 proves that two ways to train are the same but for rounding; nobody trains in it.
WEIGHTS = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
MIXED = {"fp32": "no", "bf16": "bf16", "fp64": "no"}  # as accelerate names it


class KeepDouble(TorchFunctionMode):
    """While entered, ``tensor.float()`` and ``tensor.to(torch.float32)`` leave float64 as it is.

    Models say so where bfloat16 would be too narrow; in float64 the same lines would narrow what they mean to widen.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls `func`, or returns its tensor."""
        if func is Tensor.float or (func is Tensor.to and torch.float32 in args):
            tensor = args[0]
            if tensor.dtype is torch.float64:
                return tensor
        return func(*args, **(kwargs or {}))
