"""Hugging Face's Trainer, made to advance an update at a time, so that it can be timed by turns with others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from cwd.config import Config
from cwd.data.batches import Tokens, inputs_and_targets
from cwd.training.sources import load_tokens


class _Rows(Dataset):
    """The rows of the data in their order, as the trainer's own loader asks for them."""

    def __init__(self, tokens: Tokens, seq_len: int) -> None:
        self._tokens, self._seq_len = tokens, seq_len

    def __len__(self) -> int:
        return len(self._tokens) // self._seq_len

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self._tokens[index * self._seq_len : (index + 1) * self._seq_len][None]
        inputs, targets = (torch.from_numpy(array[0]) for array in inputs_and_targets(row.astype("int64")))
        return {"input_ids": inputs, "labels": targets}


class _Turnstile(TrainerCallback):
    """Lets one update through for each call of :meth:`advance`; the trainer waits in a thread of its own."""

    def __init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None

    def on_step_begin(self, *unused: Any, **more: Any) -> None:
        self._go.acquire()

    def on_step_end(self, *unused: Any, **more: Any) -> None:
        self._done.release()

    def run(self, train: Callable[[], Any], threads: int) -> None:
        """The thread's body."""
        torch.set_num_threads(threads)  # of OpenMP, this is a setting of the calling thread
        try:
            train()
        except BaseException as error:
            self.error = error
        self._done.release()

    def advance(self) -> None:
        """One update."""
        self._go.release()
        self._done.acquire()
        if self.error is not None:
            raise self.error


def hf_trainer_loop(config: Config, model: nn.Module, folder: Path) -> Callable[[], None]:
    """One update of Hugging Face's Trainer over the configured data: fused AdamW, its own loader, collator,
    clipping and logging.
    """
    training = config.training
    assert training.seq_len is not None
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=training.batch_size,
        max_steps=training.steps,
        learning_rate=config.optimizer.lr,
        max_grad_norm=training.clip_norm or 0.0,
        optim="adamw_torch_fused",
        logging_steps=config.machine.log_every,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=config.machine.device == "cpu" or not torch.cuda.is_available(),
        seed=config.seed,
        dataloader_pin_memory=False,
    )
    turnstile = _Turnstile()
    rows = _Rows(load_tokens(config, print).tokens("train"), training.seq_len)
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[turnstile], compute_loss_func=_loss)
    trainer.remove_callback(PrinterCallback)
    threading.Thread(target=turnstile.run, args=(trainer.train, torch.get_num_threads()), daemon=True).start()
    return turnstile.advance


def _loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
