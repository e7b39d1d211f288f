"""DTensor parameters (FSDP2's fully_shard, tensor parallel): what a step needs to know about the shards.

Elementwise rules and modes act on the local shard, without communication. Modes that look at a tensor as a whole add
their sums up over the shards: an all-reduce of a few numbers. Mesh dimensions that replicate take no part in it: every
replica does the same. The processes of a mesh must step together, with gradients for the same parameters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from cwd.optim.draws import Elements


class Cut(NamedTuple):
    """One division of a tensor, along one of its dimensions, over the processes of a mesh dimension."""

    dim: int
    length: int  # of what is divided, on this process: after the cuts before
    group: dist.ProcessGroup

    @property
    def lengths(self) -> list[int]:
        """What each process of the group has: as Shard, fully_shard and torch.chunk divide. The last may have none."""
        parts = self.group.size()
        most = -(-self.length // parts)
        return [max(0, min(most, self.length - most * i)) for i in range(parts)]


class Total(NamedTuple):
    """Adds a tensor up, in place, over the processes that share a parameter: those of each group in turn."""

    groups: tuple[dist.ProcessGroup, ...]

    def __call__(self, sums: Tensor) -> Tensor:
        """The sum, the same on all of them."""
        for group in self.groups:
            dist.all_reduce(sums, group=group)
        return sums

    @property
    def parts(self) -> int:
        """Into how many parts the parameter is divided."""
        return math.prod(group.size() for group in self.groups)


def total_over(p: Any) -> Total | None:
    """How to add up over the processes that share `p`; None if each has all of it."""
    groups = tuple(cut.group for cut in cuts_of(p))
    return Total(groups) if groups else None


def elements_of(p: Any) -> Elements:
    """The number, in the whole tensor, of each element of the local shard, real and imaginary parts counted by
    themselves: its first one, where they follow one another, else an int64 vector.
    """
    shape, starts = block_of(p)
    whole = list(p.shape)
    if p.is_complex():
        whole, shape, starts = [*whole, 2], [*shape, 2], [*starts, 0]
    strides = [math.prod(whole[dim + 1 :]) for dim in range(len(whole))]
    if shape[1:] == whole[1:]:
        return starts[0] * strides[0] if whole else 0
    index = torch.zeros(shape, dtype=torch.int64, device=p.device)
    for dim, (length, start, stride) in enumerate(zip(shape, starts, strides, strict=True)):
        along = (torch.arange(length, device=p.device) + start) * stride
        index += along.view([-1 if i == dim else 1 for i in range(len(shape))])
    return index.reshape(-1)


def block_of(p: Any) -> tuple[list[int], list[int]]:
    """The shape of the local shard, and where in the whole tensor it begins, in each dimension."""
    shape, starts = list(p.shape), [0] * p.ndim
    for cut in cuts_of(p):
        starts[cut.dim] += sum(cut.lengths[: cut.group.rank()])
        shape[cut.dim] = cut.lengths[cut.group.rank()]
    return shape, starts


def cuts_of(p: Any) -> list[Cut]:
    """How a DTensor is divided, in order: by the mesh dimensions from left to right, but by those of fully_shard after
    those of tensor parallel that divide the same dimension.

    Raises:
        ValueError: placements of other kinds; a local shard that is not as long as they say.
    """
    plain = [(placement.dim, i) for i, placement in enumerate(p.placements) if type(placement) is Shard]
    late = []
    for i, placement in enumerate(p.placements):
        if type(placement) in (Shard, Replicate):
            continue
        factor = getattr(placement, "split_factor", None)  # that of fully_shard over tensor parallel has one
        if factor is None or factor != _divided(p, [j for dim, j in plain if dim == placement.dim and j > i]):
            raise ValueError(f"placements {tuple(p.placements)}: allowed are Shard and Replicate")
        late.append((placement.dim, i))
    cuts, shape = [], list(p.shape)
    for dim, i in [one for one in plain + late if p.device_mesh.size(one[1]) > 1]:
        cuts.append(Cut(dim, shape[dim], p.device_mesh.get_group(i)))
        shape[dim] = cuts[-1].lengths[cuts[-1].group.rank()]
    if list(p.to_local().shape) != shape:
        raise ValueError(
            f"a local shard of shape {tuple(p.to_local().shape)}: {tuple(shape)} is what the placements "
            f"{tuple(p.placements)} of {tuple(p.shape)} give this process"
        )
    return cuts


def placed_like(value: Tensor, p: Any) -> DTensor:
    """State of a parameter, a DTensor or the whole of it on each process, as a DTensor that lies as `p` does.

    Raises:
        ValueError: another shape.
    """
    if value.shape != p.shape:
        raise ValueError(
            f"state of shape {tuple(value.shape)} for a DTensor of shape {tuple(p.shape)}: load whole state"
        )
    if isinstance(value, DTensor):
        return value.redistribute(p.device_mesh, p.placements)
    for dim, (length, start) in enumerate(zip(*block_of(p), strict=True)):
        value = value.narrow(dim, start, length)
    own = value.contiguous()
    return DTensor.from_local(own, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def _divided(p: Any, mesh_dims: list[int]) -> int:
    return math.prod(p.device_mesh.size(i) for i in mesh_dims)
