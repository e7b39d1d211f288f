"""What is trained: the model, the batch, the loss and the metrics. The trainer knows none of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

Batch = dict[str, Tensor]


class Task(Protocol):
    """The trainer's view of a task. A batch is a dict of CPU tensors with one row per example."""

    unit: str  # what is counted: "tokens", "images"
    metrics: tuple[str, ...]  # what measure gives besides "count"; "loss" is among them

    def build_model(self) -> nn.Module:
        """The model, its weights drawn from torch's global generator."""

    def describe(self, model: nn.Module) -> list[str]:
        """Lines for a person: what is trained, on what, for how long."""

    def batch(self, step: int) -> Batch:
        """The whole batch of the update with 0-based number `step`, over all processes: a pure function of (data, seed,
        step).
        """

    def load(self, batch: Batch) -> Batch:
        """Rows of a batch, or of the evaluation set, with all that the model needs, still on the CPU."""

    def units(self, batch: Batch) -> int:
        """How many units the batch holds."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch, 0-D float32."""

    def evaluation_rows(self) -> int:
        """How many rows the evaluation set has."""

    def evaluation_batch(self, start: int, stop: int) -> Batch:
        """Those rows of the evaluation set, the same for every seed."""

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over the batch, float64, and their "count"; a metric is its sum divided by the count."""

    def save_model(self, model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        """Writes the model as its own library reads it, with what it cannot be used without (a tokenizer). `weights` is
        its whole state dict, of which a process may hold but a part.
        """

    def summary(self) -> dict[str, Any]:
        """What else is worth keeping in the run's summary."""


class TextTask:
    """What the tasks on rows of token ids share."""

    unit = "tokens"
    metrics: tuple[str, ...] = ("loss", "accuracy")

    def load(self, batch: Batch) -> Batch:
        """The rows as they are."""
        return batch

    def summary(self) -> dict[str, Any]:
        """Nothing else."""
        return {}


class Share(NamedTuple):
    """A process's part of each batch: `rows` rows from `first` on, `at_once` of them together; it is number `process`
    of `processes`.
    """

    first: int
    rows: int
    at_once: int
    process: int
    processes: int

    def of(self, pieces: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The pieces of an evaluation that this process measures."""
        return islice(pieces, self.process, None, self.processes)


def chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces of at most `size`."""
    for start in range(0, count, size):
        yield start, min(start + size, count)
