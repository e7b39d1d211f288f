"""TensorBoard as a tracker: scalars in the run's folder, for ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cwd import schema
from cwd.naming import run_name
from cwd.runs import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardSink:
    """An event file."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def log(self, values: dict[str, Any], step: int) -> None:
        """See cwd.training.tracker.Sink. Flushed at once, so a kill loses none."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """See cwd.training.tracker.Sink. A summary is no series."""
        self._writer.close()


def tensorboard_opener(config: schema.Config, record: Record) -> Callable[[int], TensorBoardSink]:
    """What opens an event file in the record's folder. Raises ImportError if tensorboard is not there."""
    from torch.utils.tensorboard import SummaryWriter

    folder = record.folder / FOLDER / run_name(config)
    # A start after a kill writes again what came after the checkpoint: readers then hide what was there before.
    return lambda after: TensorBoardSink(SummaryWriter(str(folder), purge_step=after + 1))
