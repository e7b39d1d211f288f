"""What a run's checkpoints cost, from the "speed" lines of its metrics."""

from __future__ import annotations

from dataclasses import dataclass

from cwd.runs.metrics import read_metrics
from cwd.runs.record import Record


@dataclass(frozen=True)
class CheckpointCosts:
    """Of all checkpoints of a run.

    Attributes:
        written: how many.
        waited: seconds that training stood still for them.
        behind: seconds that a thread wrote while training went on.
        size: bytes of the last; a run that is not finished keeps two.
    """

    written: int
    waited: float
    behind: float
    size: int


def checkpoint_costs(record: Record) -> CheckpointCosts:
    """What the record has of them. Runs from before there was a thread waited for all."""
    lines = [line for line in read_metrics(record.metrics_file, "speed") if "checkpoints" in line]
    return CheckpointCosts(
        sum(line["checkpoints"] for line in lines),
        sum(line["checkpoint_seconds"] for line in lines),
        sum(line.get("checkpoint_background_seconds", 0.0) for line in lines),
        next((line["checkpoint_bytes"] for line in reversed(lines) if line["checkpoint_bytes"]), 0),
    )
