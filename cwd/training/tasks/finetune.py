"""Supervised fine-tuning of a causal language model: the loss is on the answers alone."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cwd import schema
from cwd.data.instructions import IGNORED, InstructionData, Rows
from cwd.data.orders import epoch_order
from cwd.errors import UserError
from cwd.training.pretrained import Source
from cwd.training.tasks import Batch, TextTask


class FinetuneTask(TextTask):
    """Instructions and answers in rows (B, T). Every answer token of a batch counts alike, whatever its row, and
    however the batch is cut in micro-batches and shared among processes.
    """

    def __init__(self, config: schema.Config, data: InstructionData, source: Source) -> None:
        assert isinstance(config.model, schema.Pretrained)
        if config.model.adapter == "lora" and config.machine.sharding != "none":
            sharding = config.machine.sharding
            raise UserError(
                f"machine.sharding={sharding}: adapters are not divided; allowed with model.adapter=lora is none"
            )
        self._model, self._training, self._seed = config.model, config.training, config.seed
        self._data, self._source = data, source
        assert config.evaluation.sequences is not None
        self._evaluation = _first(data.validation, config.evaluation.sequences)

    def build_model(self) -> nn.Module:
        """The pretrained model in float32; with adapters (peft), whose first values are drawn from torch's generator,
        and whose product is zero at first.
        """
        from transformers import AutoModelForCausalLM

        import cwd.models  # noqa: F401 (registers ours with transformers)

        state = torch.get_rng_state()
        model = AutoModelForCausalLM.from_pretrained(
            str(self._source.folder), dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        torch.set_rng_state(state)
        return model if self._model.adapter == "none" else with_lora(model, self._model)

    def describe(self, model: nn.Module) -> list[str]:
        """Lines on model, data and length."""
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        total, learned = sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
        counts, training = self._data.counts, self._training
        return [
            f"model  {self._source.folder}: {total:,} parameters, {learned:,} trained ({self._model.adapter})",
            f"data   {counts['train']:,} examples to train on in {len(self._data.train):,} rows, "
            f"{counts['validation']:,} held out",
            f"steps  {training.steps:,} of {training.batch_size} x {training.seq_len} tokens",
        ]

    def batch(self, step: int) -> Batch:
        """ids, labels, positions, all (batch_size, seq_len) int64, and share (batch_size,): the mean number of answer
        tokens of the batch's rows.
        """
        size, rows = self._training.batch_size, self._data.train
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), len(rows))
        order = [epoch_order(self._seed, int(e), len(rows))[p] for e, p in zip(epochs, places, strict=True)]
        return _tensors(rows, np.array(order))

    def units(self, batch: Batch) -> int:
        """Tokens of the rows, filling among them: the same for each step."""
        return batch["ids"].numel()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy over the answer tokens, nats, as a part of the whole batch's mean: float32."""
        losses, _ = _answers(model, batch)
        return losses.sum() / (batch["share"][0] * len(batch["ids"])).float()

    def evaluation_rows(self) -> int:
        """Rows of held-out examples."""
        return len(self._evaluation)

    def evaluation_batch(self, start: int, stop: int) -> Batch:
        """As :meth:`batch`, of the held-out rows [start, stop)."""
        return _tensors(self._evaluation, np.arange(start, stop))

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums of loss (nats) and accuracy over the answer tokens."""
        losses, right = _answers(model, batch)
        count = torch.tensor(float(losses.numel()), dtype=torch.float64, device=losses.device)
        return {"loss": losses.double().sum(), "accuracy": right.double().sum(), "count": count}

    def save_model(self, model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
        """A folder for transformers' Auto classes, adapters merged into the weights; they themselves, for peft, in
        adapter/.
        """
        if self._model.adapter == "lora":
            model.save_pretrained(folder / "adapter")  # type: ignore[operator]
            model = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
            weights = model.state_dict()
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        self._source.tokenizer.save_pretrained(str(folder))


def with_lora(model: nn.Module, options: schema.Pretrained) -> nn.Module:
    """The model with low-rank adapters beside the linear layers that `options` name; the rest is frozen.

    Raises:
        UserError: peft is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise UserError(
            "model.adapter=lora: peft is not installed; pip install -c requirements.lock -e '.[finetune]'"
        ) from error
    targets: Any = options.targets
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of transformers, about peft's own ways
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"model.targets={targets}: {str(error).splitlines()[0]}") from error


def _answers(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and whether the most likely token is right, of each answer token."""
    logits = model(input_ids=batch["ids"], position_ids=batch["positions"], use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORED
    logits, labels = logits[learned].float(), labels[learned]
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels


def _tensors(rows: Rows, chosen: np.ndarray) -> Batch:
    tables = {"ids": rows.ids, "labels": rows.labels, "positions": rows.positions}
    batch = {name: torch.from_numpy(table[chosen].astype(np.int64)) for name, table in tables.items()}
    mean = (batch["labels"] != IGNORED).sum().double() / len(chosen)
    return {**batch, "share": mean.expand(len(chosen)).clone()}


def _first(rows: Rows, count: int) -> Rows:
    return Rows(rows.ids[:count], rows.labels[:count], rows.positions[:count])
