"""The metrics on the evaluation set, shared out among the processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cwd.training.tasks import Batch, Task, chunks


@torch.no_grad()
def evaluate(
    model: nn.Module, task: Task, accelerator: Accelerator, micro: int, average: AveragedModel | None = None
) -> dict[str, float]:
    """Means over the evaluation set, by the names of ``task.metrics``, and those of the averaged weights, as ``ema_``
    and the name; each process measures every n-th piece.

    A process that has a piece less than another measures the last one once more, and forgets it: a divided model
    computes on all processes or on none.

    Args:
        micro: rows at once.
    """
    model.eval()
    rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    averaged = [] if average is None else [f"ema_{name}" for name in task.metrics]
    names = ("count", *task.metrics, *averaged)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    pieces = list(chunks(task.evaluation_rows(), micro))
    for first in range(0, len(pieces), processes):
        start, stop = pieces[min(first + rank, len(pieces) - 1)]
        piece = load(task, task.evaluation_batch(start, stop), device)
        measured = task.measure(model, piece)
        if average is not None:
            with accelerator.autocast():  # the average is not the model that accelerate has prepared
                found = task.measure(average.module.eval(), piece)
            measured |= {f"ema_{name}": value for name, value in found.items()}
        if first + rank < len(pieces):
            sums += torch.stack([measured[name] for name in names])
    model.train()
    count, *totals = accelerator.reduce(sums, reduction="sum").tolist()
    return {name: total / count for name, total in zip(names[1:], totals, strict=True)}


def load(task: Task, batch: Batch, device: torch.device, start: int = 0, stop: int | None = None) -> Batch:
    """The rows [start, stop) of a batch, with what the task loads for them, where the model is."""
    rows = task.load({name: tensor[start:stop] for name, tensor in batch.items()})
    return {name: tensor.to(device) for name, tensor in rows.items()}
