"""Muon on matrices that are divided over processes: each matrix is orthogonalised once, by one of them.

Momentum and look-ahead are elementwise and stay where they are. The look-aheads of some matrices together go to their
owners, in the dtype of the iteration, and come back orthogonalised: one all-to-all there and one back, for each mesh
dimension that divides matrices. Stacks of which each process has whole matrices need neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cwd.optim.directions import look_ahead, muon_scale, orthogonalized
from cwd.optim.sharded import Cut, cuts_of
from cwd.optim.slots import Slot
from cwd.optim.update import Now, Part, Whole, direction

Groups = tuple[dist.ProcessGroup, ...]
Function = Callable[[list[Tensor]], list[Tensor]]


class Piece(NamedTuple):
    """This process's part of a matrix."""

    tensor: Tensor
    cuts: tuple[Cut, ...]  # of the matrix, one for each group that it is divided over
    owner: tuple[int, ...]  # the place, in each of these groups, of the process that orthogonalises the matrix


def directions(
    slots: Sequence[Slot], parts: Sequence[Part], wholes: Sequence[Whole], now: Now
) -> list[tuple[Tensor, Tensor]]:
    """(u, g) of slots of one group, as :func:`cwd.optim.update.direction` gives them; all processes call it alike."""
    seen = [direction(part, whole, now, look_ahead) for part, whole in zip(parts, wholes, strict=True)]
    hyper, dtype = slots[0].group, slots[0].group["ns_dtype"] or slots[0].dtype
    cuts = [_cuts(slot) for slot in slots]
    alike: dict[Groups, list[int]] = {}
    for i, own in enumerate(cuts):
        alike.setdefault(tuple(cut.group for cut in own), []).append(i)
    us: dict[int, Tensor] = {}
    for groups, indices in alike.items():
        shards = [seen[i][0].to(dtype) for i in indices]
        pieces = _pieces([slots[i] for i in indices], shards, [cuts[i] for i in indices], groups)
        found = _through_owners(pieces, groups, lambda matrices: [orthogonalized(matrix, hyper) for matrix in matrices])
        us.update(zip(indices, _restack(found, shards), strict=True))
    scales = [muon_scale(hyper["adjust_lr_fn"], *_matrix_shape(slot)) for slot in slots]
    return [(us[i].to(g.dtype).mul(scales[i]), g) for i, (_, g) in enumerate(seen)]


def _cuts(slot: Slot) -> tuple[Cut, ...]:
    """The cuts of a parameter that divide its matrices, as cuts of a matrix."""
    stacked = slot.x.ndim - 2
    return tuple(cut._replace(dim=cut.dim - stacked) for cut in cuts_of(slot.p) if cut.dim >= stacked)


def _pieces(
    slots: Sequence[Slot], shards: Sequence[Tensor], cuts: Sequence[tuple[Cut, ...]], groups: Groups
) -> list[Piece]:
    """The shards matrix by matrix, with their owners."""
    counts = [len(_unstack(shard)) for shard in shards]
    costs = [_cost(slot) for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
    owners = iter(_owners(costs, [group.size() for group in groups]))
    return [
        Piece(matrix, own, next(owners)) for shard, own in zip(shards, cuts, strict=True) for matrix in _unstack(shard)
    ]


def _unstack(shard: Tensor) -> Sequence[Tensor]:
    return shard.unbind() if shard.ndim == 3 else [shard]


def _restack(matrices: Sequence[Tensor], shards: Sequence[Tensor]) -> list[Tensor]:
    """The matrices, stacked as the shards are."""
    found = iter(matrices)
    own = [[next(found) for _ in _unstack(shard)] for shard in shards]
    return [torch.cat(of).view(shard.shape) if of else shard for of, shard in zip(own, shards, strict=True)]


def _owners(costs: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Who orthogonalises what: the costliest first, each to the process with the least to do so far.

    Args:
        costs: of the matrices.
        sizes: of the groups; an owner is a place in each.
    """
    places = list(product(*(range(size) for size in sizes)))
    load = dict.fromkeys(places, 0)
    owners = [places[0]] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = min(places, key=load.__getitem__)
        load[owners[i]] += costs[i]
    return owners


def _cost(slot: Slot) -> int:
    """Multiplications for a matrix, up to a factor."""
    rows, cols = _matrix_shape(slot)
    return rows * cols * min(rows, cols)


def _matrix_shape(slot: Slot) -> tuple[int, int]:
    """Rows and columns of the whole parameter's matrices; those of a kernel are divided by rows only."""
    if slot.p.ndim == 4:
        return slot.p.shape[0], slot.p.shape[1:].numel()
    return slot.p.shape[-2], slot.p.shape[-1]


def _through_owners(pieces: Sequence[Piece], groups: Groups, function: Function) -> list[Tensor]:
    """`function` of the whole matrices, each on its owner; returns this process's pieces of the results."""
    if not groups or not pieces:
        return function([piece.tensor for piece in pieces])
    results = _through_owners(_join(pieces, groups[-1]), groups[:-1], function)
    return _divide(results, pieces, groups[-1])


def _join(pieces: Sequence[Piece], group: dist.ProcessGroup) -> list[Piece]:
    """What this process owns in a group that divided `pieces` last, put together from all of the group."""
    ranks = range(group.size())
    mine = [piece for piece in pieces if piece.owner[-1] == group.rank()]
    send = [[piece.tensor for piece in pieces if piece.owner[-1] == rank] for rank in ranks]
    shapes = [[_shape(piece, rank) for piece in mine] for rank in ranks]
    received = _exchange(send, shapes, pieces[0].tensor, group)
    return [
        Piece(torch.cat(tensors, piece.cuts[-1].dim), piece.cuts[:-1], piece.owner[:-1])
        for piece, *tensors in zip(mine, *received, strict=True)
    ]


def _divide(results: Sequence[Tensor], pieces: Sequence[Piece], group: dist.ProcessGroup) -> list[Tensor]:
    """The way back: `results` are of what :func:`_join` gave; returns those of all `pieces`."""
    ranks = range(group.size())
    mine = [piece.cuts[-1] for piece in pieces if piece.owner[-1] == group.rank()]
    divided = [result.split(cut.lengths, cut.dim) for result, cut in zip(results, mine, strict=True)]
    send = [[tensors[rank] for tensors in divided] for rank in ranks]
    shapes = [[list(piece.tensor.shape) for piece in pieces if piece.owner[-1] == rank] for rank in ranks]
    received = [iter(tensors) for tensors in _exchange(send, shapes, pieces[0].tensor, group)]
    return [next(received[piece.owner[-1]]) for piece in pieces]


def _exchange(
    send: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[list[int]]], like: Tensor, group: dist.ProcessGroup
) -> list[list[Tensor]]:
    """Sends ``send[rank]`` to each process of the group; returns what each sent, of ``shapes[rank]``."""
    out = torch.cat([like.new_empty(0), *(tensor.reshape(-1) for tensors in send for tensor in tensors)])
    sizes = [[math.prod(shape) for shape in of] for of in shapes]
    into = like.new_empty(sum(map(sum, sizes)))
    sent = [sum(tensor.numel() for tensor in tensors) for tensors in send]
    dist.all_to_all_single(into, out, list(map(sum, sizes)), sent, group=group)
    found = iter(into.split([size for of in sizes for size in of]))
    return [[next(found).view(shape) for shape in of] for of in shapes]


def _shape(piece: Piece, rank: int) -> list[int]:
    """The shape of another process's piece of a matrix."""
    shape, cut = list(piece.tensor.shape), piece.cuts[-1]
    shape[cut.dim] = cut.lengths[rank]
    return shape
