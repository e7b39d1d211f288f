"""Next-token prediction on packed text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwd import schema
from cwd.config import model_shape
from cwd.data.batches import evaluation_rows, inputs_and_targets, rows
from cwd.data.export import save_for_transformers
from cwd.data.tokens import TokenData
from cwd.errors import UserError
from cwd.models import build
from cwd.models.loss import ALL_LOGITS
from cwd.models.zoo import count_parameters
from cwd.training.tasks import Batch, TextTask


class LanguageTask(TextTask):
    """Next-token prediction over packed rows (B, T): every token is predicted, the first of a row from id 0 (the
    paper's packing).
    """

    def __init__(self, config: schema.Config, data: TokenData) -> None:
        assert isinstance(config.model, schema.Language)
        self._model, self._training, self._seed = config.model, config.training, config.seed
        self._machine = config.machine
        assert config.training.seq_len is not None
        assert config.evaluation.sequences is not None
        self._seq_len = config.training.seq_len
        self._name, self._scale, self._data = config.dataset.name, config.scale, data
        self._train = data.tokens("train")
        self._vocab_size = data.vocab_size
        self._evaluation = evaluation_rows(data.tokens("validation"), config.evaluation.sequences, self._seq_len)

    def build_model(self) -> nn.Module:
        """The configured model.

        Raises:
            UserError: a value that the family does not take, a table with fewer rows than the data has ids.
        """
        model = build(
            self._model.family,
            vocab_size=self._vocab_size,
            seq_len=self._seq_len,
            attn_implementation=attention(self._model, self._machine),
            **model_shape(self._model),
        )
        if self._machine.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return model

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

    def units(self, batch: Batch) -> int:
        """Target tokens."""
        return batch["targets"].numel()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy, nats per token, in float32."""
        inputs, targets = batch["inputs"], batch["targets"]
        if self._few(targets):
            logits = model(input_ids=inputs, use_cache=False).logits
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss, _ = model(input_ids=inputs, targets=targets, use_cache=False)
        return (loss / targets.numel()).float()

    def _few(self, targets: Tensor) -> bool:
        """Whether all logits may be there at once: what runs of small models did before there were chunks, so that
        their numbers stay what they are, bit for bit.
        """
        return targets.numel() * (self._model.embedding_size or self._vocab_size) <= ALL_LOGITS

    def evaluation_rows(self) -> int:
        """Sequences in the evaluation set; fewer than asked for if the split is small."""
        return len(self._evaluation)

    def evaluation_batch(self, start: int, stop: int) -> Batch:
        """As :meth:`batch`, of the evaluation set's rows [start, stop)."""
        return _tensors(self._evaluation[start:stop])

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums of loss (nats) and accuracy (next-token top-1, the paper's "evaluation accuracy") over the tokens."""
        inputs, targets = batch["inputs"], batch["targets"]
        count = torch.tensor(float(targets.numel()), dtype=torch.float64, device=targets.device)
        if not self._few(targets):
            loss, correct = model(input_ids=inputs, targets=targets, use_cache=False)
            return {"loss": loss.double(), "accuracy": correct.double(), "count": count}
        logits = model(input_ids=inputs, use_cache=False).logits.float().flatten(0, 1)
        targets = targets.flatten()
        return {
            "loss": F.cross_entropy(logits, targets, reduction="none").double().sum(),
            "accuracy": (logits.argmax(-1) == targets).double().sum(),
            "count": count,
        }

    def save_model(self, model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        """A folder for transformers' Auto classes, with the tokenizer."""
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        save_for_transformers(self._data.tokenizer(), folder)


def attention(model: schema.Language, machine: schema.Machine) -> str | None:
    """The attention to ask the model for, None for its own choice: transformers' SDPA; eager for Simply.

    On a GPU, Simply's soft-capped scores take flex attention, where the size of its heads is one that flex attention
    takes on every GPU; it never holds the scores of all pairs of positions.

    Raises:
        UserError: flex attention on a CPU, where it has no backward.
    """
    gpu = machine.device != "cpu" and torch.cuda.is_available()
    if machine.attention == "flex_attention" and not gpu:
        raise UserError("machine.attention=flex_attention: cannot train on a CPU; allowed there are auto, eager, sdpa")
    if machine.attention != "auto":
        return machine.attention
    if not gpu or not isinstance(model, schema.Simply):
        return None
    if model.attn_softcap is None:
        return "sdpa"
    head_dim = (model.head_dim or model.hidden_size // model.num_attention_heads) // model.shrink
    return "flex_attention" if head_dim in (16, 32, 64, 128, 256) else "eager"


def _tensors(token_rows: Any) -> Batch:
    inputs, targets = inputs_and_targets(token_rows)
    return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}
