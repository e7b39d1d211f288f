"""Next-token prediction on packed text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwd import schema
from cwd.data.batches import evaluation_rows, inputs_and_targets, rows
from cwd.data.tokens import TokenData
from cwd.models import build
from cwd.models.zoo import count_parameters
from cwd.training.tasks import Batch


class LanguageTask:
    """Next-token prediction over packed rows (B, T): every token is predicted, the first of a row from id 0 (the
    paper's packing).
    """

    unit = "tokens"
    metrics: tuple[str, ...] = ("loss", "accuracy")

    def __init__(self, config: schema.Config, data: TokenData) -> None:
        self._model, self._training, self._seed = config.model, config.training, config.seed
        assert config.training.seq_len is not None
        assert config.evaluation.sequences is not None
        self._seq_len = config.training.seq_len
        self._name, self._scale, self._data = config.dataset.name, config.scale, data
        self._train = data.tokens("train")
        self._vocab_size = data.vocab_size
        self._evaluation = evaluation_rows(data.tokens("validation"), config.evaluation.sequences, self._seq_len)

    def build_model(self) -> nn.Module:
        """The configured model with the data's vocabulary."""
        shape = {name: value for name, value in vars(self._model).items() if name != "family"}
        return build(self._model.family, vocab_size=self._vocab_size, seq_len=self._seq_len, **shape)

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """A folder for transformers' Auto classes."""
        model.save_pretrained(folder)  # type: ignore[operator]

    def describe(self, model: nn.Module) -> list[str]:
        """Lines on model, data and length."""
        count, training = count_parameters(model), self._training  # type: ignore[arg-type]
        tokens = {split: f"{part['tokens']:,}" for split, part in self._data.manifest["splits"].items()}
        return [
            f"model  {self._model.family}: {count.total:,} parameters, {count.non_embedding:,} beside the embedding",
            f"data   {self._name}: {tokens['train']} tokens to train on, {tokens['validation']} held out",
            f"steps  {training.steps:,} of {training.batch_size} x {training.seq_len} tokens, {self._scale} scale",
        ]

    def batch(self, step: int) -> Batch:
        """inputs and targets, both (batch_size, seq_len) int64."""
        size, length = self._training.batch_size, self._seq_len
        return _tensors(rows(self._train, seed=self._seed, step=step, batch_size=size, seq_len=length))

    def load(self, batch: Batch) -> Batch:
        """The rows as they are."""
        return batch

    def units(self, batch: Batch) -> int:
        """Target tokens."""
        return batch["targets"].numel()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy, nats per token, in float32."""
        logits = model(input_ids=batch["inputs"]).logits
        return F.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten())

    def evaluation_rows(self) -> int:
        """Sequences in the evaluation set; fewer than asked for if the split is small."""
        return len(self._evaluation)

    def evaluation_batch(self, start: int, stop: int) -> Batch:
        """As :meth:`batch`, of the evaluation set's rows [start, stop)."""
        return _tensors(self._evaluation[start:stop])

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums of loss (nats) and accuracy (next-token top-1, the paper's "evaluation accuracy") over the tokens."""
        logits = model(input_ids=batch["inputs"]).logits.float().flatten(0, 1)
        targets = batch["targets"].flatten()
        return {
            "loss": F.cross_entropy(logits, targets, reduction="none").double().sum(),
            "accuracy": (logits.argmax(-1) == targets).double().sum(),
            "count": torch.tensor(float(targets.numel()), dtype=torch.float64, device=targets.device),
        }

    def summary(self) -> dict[str, Any]:
        """Nothing else."""
        return {}


def _tensors(token_rows: Any) -> Batch:
    inputs, targets = inputs_and_targets(token_rows)
    return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
