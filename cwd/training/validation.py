"""The metrics on the evaluation set, shared out among the processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from cwd.training.tasks import Batch, Task, chunks


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, accelerator: Accelerator, micro: int) -> dict[str, float]:
    """Means over the evaluation set, by the names of ``task.metrics``; each process measures every n-th piece.

    A process that has a piece less than another measures the last one once more, and forgets it: a divided model
    computes on all processes or on none.

    Args:
        micro: rows at once.
    """
    model.eval()
    rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    names = ("count", *task.metrics)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    pieces = list(chunks(task.evaluation_rows(), micro))
    for first in range(0, len(pieces), processes):
        start, stop = pieces[min(first + rank, len(pieces) - 1)]
        measured = task.measure(model, to_device(task.evaluation_batch(start, stop), device))
        if first + rank < len(pieces):
            sums += torch.stack([measured[name] for name in names])
    model.train()
    count, *totals = accelerator.reduce(sums, reduction="sum").tolist()
    return {name: total / count for name, total in zip(task.metrics, totals, strict=True)}


def to_device(batch: Batch, device: torch.device, start: int = 0, stop: int | None = None) -> Batch:
    """The rows [start, stop) of a batch where the model is."""
    return {name: tensor[start:stop].to(device) for name, tensor in batch.items()}
