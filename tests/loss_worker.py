"""One of two processes that take the loss by chunks of half a batch each, under DDP and under FSDP2.

``python -m tests.loss_worker RANK FOLDER``: the first process writes the gradients of each way.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cwd.models import build, loss

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}


def problem() -> tuple[torch.nn.Module, Tensor]:
    """The model, and ids and targets (2, 4, 16)."""
    torch.manual_seed(0)
    return build("simply", vocab_size=300, seq_len=16, **SHAPE), torch.randint(300, (2, 4, 16))


def gradients(way: str, rank: int) -> dict[str, Tensor]:
    """Of the mean loss over the whole batch, this process having `rank`'s half of it."""
    model, batch = problem()
    inputs, targets = batch[:, 2 * rank : 2 * rank + 2]
    if way == "fsdp":
        for part in (*model.layers, model):
            fully_shard(part)
    wrapped = DistributedDataParallel(model) if way == "ddp" else model
    value, _ = wrapped(input_ids=inputs, targets=targets, use_cache=False)
    (value / targets.numel()).float().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in found.items()}


def main(rank: int, folder: Path) -> None:
    """See the module."""
    torch.set_num_threads(1)
    loss.CHUNK = 10 * 300
    place = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results = {way: gradients(way, rank) for way in ("ddp", "fsdp")}
    if rank == 0:
        torch.save(results, folder / "gradients.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
