"""DTensor parameters (FSDP2's fully_shard, tensor parallel): what a step needs to know about the shards.

Elementwise rules and modes act on the local shard, without communication. Modes that look at a tensor as a whole add
their sums up over the shards: one all-reduce of a few numbers a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from cwd.optim.draws import Elements
from cwd.optim.update import Total


def elements_of(p: Any) -> Elements:
    """The number, in the whole tensor, of each element of the local shard: its first one, where they follow one
    another, else an int64 vector.
    """
    shape, offsets = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    whole = torch.Size(p.shape)
    strides = torch.empty(whole, device="meta").stride()
    if tuple(shape[1:]) == tuple(whole[1:]):
        return offsets[0] * strides[0] if whole else 0
    index = torch.zeros(shape, dtype=torch.int64, device=p.device)
    for dim, (length, offset, stride) in enumerate(zip(shape, offsets, strides, strict=True)):
        along = (torch.arange(length, device=p.device) + offset) * stride
        index += along.view([-1 if i == dim else 1 for i in range(len(shape))])
    return index.reshape(-1)


def total_over(p: Any) -> Total | None:
    """A function that adds a tensor up over the devices that share `p`; None if each has all of it.

    Raises:
        ValueError: placements other than Shard and Replicate.
    """
    check_placements(p)
    groups = [p.device_mesh.get_group(i) for i, placement in enumerate(p.placements) if isinstance(placement, Shard)]
    if not groups:
        return None

    def total(sums: Tensor) -> Tensor:
        for group in groups:
            dist.all_reduce(sums, group=group)
        return sums

    return total


def check_placements(p: DTensor) -> None:
    """Raises ValueError for placements other than Shard and Replicate."""
    if not all(type(placement) in (Shard, Replicate) for placement in p.placements):
        raise ValueError(f"placements {p.placements}: Shard and Replicate are supported")
