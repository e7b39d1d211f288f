"""The training loop, driven by accelerate. It knows no task: batch, loss and metrics come from the task object.

Everything that happens in a step is a pure function of the weights, the optimizer's state and the step's number, so a
run that is stopped anywhere and goes on from a checkpoint ends with the same bits.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cwd import schema
from cwd.errors import UserError
from cwd.files import sync
from cwd.runs import MetricsLog, Record
from cwd.training.checkpoint import load_checkpoint, remove_damaged, save_checkpoint
from cwd.training.optimizer import build_optimizer
from cwd.training.progress import Progress
from cwd.training.schedule import lr_factor
from cwd.training.signals import Interrupted, Interrupts
from cwd.training.tasks import Batch, Share, Task, chunks
from cwd.training.tracker import Tracker


class Diverged(Exception):
    """The loss of an update, or of an evaluation after it, is not finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite at step {step}")
        self.step = step


class Trainer:
    """One run over one task. :meth:`fit` trains from where the record is to the end, and returns the summary.

    Args:
        config: the validated configuration.
        task: what is trained.
        record: the run's folder; only the main process writes to it, and it holds the lock.
        accelerator: devices and processes.
        progress, tracker, interrupts: for people and for signals.

    Raises:
        UserError: the batch cannot be shared among the processes, or the groups do not fit the model.
    """

    def __init__(
        self,
        config: schema.Config,
        task: Task,
        record: Record,
        accelerator: Accelerator,
        progress: Progress,
        tracker: Tracker,
        interrupts: Interrupts,
    ) -> None:
        self.config, self.task, self.record, self.accelerator = config, task, record, accelerator
        self.progress, self.tracker, self.interrupts = progress, tracker, interrupts
        self.steps = config.training.steps
        self.share = share_of(config, accelerator)
        torch.manual_seed(config.seed)
        self.bare_model = task.build_model()
        self.weights_hash = _hash_weights(self.bare_model)
        model = torch.compile(self.bare_model) if config.machine.compile else self.bare_model
        self.model = accelerator.prepare(model)
        self.rule_optimizer, self.groups = build_optimizer(config, self.bare_model)
        self.optimizer = accelerator.prepare(self.rule_optimizer)
        self.average = _average(self.bare_model, config.recipe.ema)
        self.step = 0
        self.seconds = 0.0
        self.batches_hash = ""
        self.pending: list[torch.Tensor] = []  # (loss, gradient norm) of the updates since the last line of metrics
        self.evaluated: dict[str, float] = {}

    def fit(self) -> dict[str, Any]:
        """Trains to the last step.

        Returns:
            The summary: final ``loss`` and other metrics, ``steps``, units seen, ``seconds``, and the hashes that pair
            two runs.

        Raises:
            Diverged: the loss is not finite.
            Interrupted: a signal came; a checkpoint of the current step has been written.
        """
        self.start()
        try:
            if self.step == 0:
                self._evaluate()
            while self.step < self.steps:
                self.advance()
            return self._finish()
        finally:
            if self._log_file is not None:
                self._log_file.close()

    def start(self) -> None:
        """Goes to the last checkpoint, if there is one, and opens the metrics."""
        self._resume()
        self._log_file = MetricsLog(self.record.metrics_file) if self.accelerator.is_main_process else None
        self._log_resume()
        self._started = self._saved = time.monotonic()
        self._first_step, self._seconds_before, self._units_here = self.step, self.seconds, 0

    def advance(self) -> None:
        """One update and whatever is due after it."""
        measured = _due(self.step + 1, self.config.telemetry.every) or (self.step == 0 and self.config.telemetry.every)
        self.rule_optimizer.measure = bool(measured)
        self._update()
        self.step += 1
        self.seconds = self._seconds_before + time.monotonic() - self._started
        last = self.step == self.steps
        if _due(self.step, self.config.machine.log_every) or last:
            self._log_training()
        if measured:
            self._write("telemetry", **self.rule_optimizer.take_measures())
        if _due(self.step, self.config.evaluation.every) or last:
            self._evaluate()
        if not last:
            self._save_or_leave()

    def _save_or_leave(self) -> None:
        """A checkpoint if the time for it has come or a signal came; after a signal, the end."""
        old = time.monotonic() - self._saved >= self.config.machine.checkpoint_seconds
        due, signal = self._agree(int(old), self.interrupts.signal)
        if due or signal:
            self._save()
        if signal:
            raise Interrupted(signal, self.step)

    def _agree(self, *values: int) -> list[int]:
        """The largest of each value over the processes: clocks and signals differ, and all must do the same."""
        if self.accelerator.num_processes == 1:
            return list(values)
        return self.accelerator.gather(torch.tensor([values], device=self.accelerator.device)).amax(0).tolist()

    def _update(self) -> None:
        """One optimizer update on the step's batch, accumulated over micro-batches."""
        batch = self.task.batch(self.step)
        self.batches_hash = _chain(self.batches_hash, batch)
        self._units_here += self.task.units(batch)
        self._seed_step()
        factor = lr_factor(self.config.schedule, self.step, self.steps)
        for group in self.rule_optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * group["lr_multiple"] * factor
        loss = self._accumulate(batch)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.bare_model)
        self.pending.append(torch.stack([loss, norm.detach().to(loss.dtype)]))

    def _seed_step(self) -> None:
        """Makes what a model draws in this step (dropout) a function of (seed, step, process)."""
        seed = hash((self.config.seed, self.step, self.accelerator.process_index)) & 0x7FFFFFFFFFFFFFFF
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every kind of device, each time
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _accumulate(self, batch: Batch) -> torch.Tensor:
        """Gradients of the mean loss over this process's share of the batch; returns that loss, 0-D."""
        total = torch.zeros((), device=self.accelerator.device)
        for start, stop in chunks(self.share.rows, self.share.at_once):
            piece = self._to_device(batch, self.share.first + start, self.share.first + stop)
            with nullcontext() if stop == self.share.rows else self.accelerator.no_sync(self.model):
                loss = self.task.loss(self.model, piece) * ((stop - start) / self.share.rows)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _log_training(self) -> None:
        """A line with the mean loss and gradient norm of the updates since the last one."""
        values = self._drain()
        loss, norm = values.mean(0).tolist()
        here = max(self.seconds - self._seconds_before, 1e-9)  # of this start, not of those before
        rate = self._units_here / here
        left = here / (self.step - self._first_step) * (self.steps - self.step)
        self._write(
            "train", loss=loss, grad_norm=norm, lr=self.rule_optimizer.param_groups[0]["lr"], seconds=self.seconds
        )
        self.tracker.log(
            {"train/loss": loss, "train/grad_norm": norm, f"train/{self.task.unit}_per_second": rate}, self.step
        )
        self.progress.advance(self.step, loss, rate, left)

    def _drain(self) -> torch.Tensor:
        """The pending (loss, norm) rows, averaged over processes, (n, 2) on the CPU; raises Diverged if a loss is not
        finite.
        """
        values = self.accelerator.reduce(torch.stack(self.pending), reduction="mean").cpu()
        self.pending = []
        finite = values[:, 0].isfinite()
        if not finite.all():
            raise Diverged(self.step - len(values) + 1 + int((~finite).nonzero()[0]), "the training loss")
        return values

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Metrics on the evaluation set, each process on its part."""
        self.model.eval()
        names = (
            "count",
            *self.task.metrics,
            *([] if self.average is None else map("ema_{}".format, self.task.metrics)),
        )
        sums = torch.zeros(len(names), dtype=torch.float64, device=self.accelerator.device)
        for start, stop in self.share.of(chunks(self.task.evaluation_rows(), self.share.at_once)):
            piece = self._to_device(self.task.evaluation_batch(start, stop), 0, stop - start)
            measured = self._measure(piece)
            sums += torch.stack([measured[name] for name in names])
        self.model.train()
        count, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        metrics = {name: total / count for name, total in zip(names[1:], totals, strict=True)}
        if not math.isfinite(metrics["loss"]):
            raise Diverged(self.step, "the evaluation loss")
        self.evaluated = metrics
        self._write("eval", **metrics)
        self.tracker.log({f"eval/{name}": value for name, value in metrics.items()}, self.step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.progress.say(f"step {self.step}/{self.steps}  evaluation: {shown}")

    def _measure(self, piece: Batch) -> dict[str, torch.Tensor]:
        """The task's sums, and those of the averaged weights."""
        measured = self.task.measure(self.model, piece)
        if self.average is not None:
            with self.accelerator.autocast():
                averaged = self.task.measure(self.average.module.eval(), piece)
            measured |= {f"ema_{name}": value for name, value in averaged.items()}
        return measured

    def _save(self) -> None:
        """A checkpoint of the current step. The losses since the last line are checked first: a broken state is not
        worth keeping.
        """
        if self.pending:
            rows = self._drain()
            self.pending = list(rows.to(self.accelerator.device))
        if self._log_file is not None:
            self._log_file.sync()  # a checkpoint must not outlive the lines that came before it
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "batches_hash": self.batches_hash,
                "weights_hash": self.weights_hash,
                "pending": torch.stack(self.pending).cpu() if self.pending else None,
                "model": self.bare_model.state_dict(),
                "optimizer": self.rule_optimizer.state_dict(),
            }
            if self.average is not None:
                state["average"] = self.average.state_dict()
            save_checkpoint(self.record.folder / "checkpoints", self.step, state)
            self.record.set_status("running", self.step, steps=self.steps)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        state = load_checkpoint(self.record.folder / "checkpoints", self.progress.warn)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            remove_damaged(self.record.folder / "checkpoints")
        if state is None:
            return
        if state["weights_hash"] != self.weights_hash:
            raise UserError(
                f"run {self.record.key}: its checkpoint began from other initial weights than this installation draws "
                f"for seed {self.config.seed} (another version of torch?); remove {self.record.folder} to start it anew"
            )
        self.step, self.seconds, self.batches_hash = state["step"], state["seconds"], state["batches_hash"]
        self.bare_model.load_state_dict(state["model"])
        self.rule_optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state["pending"] is not None:
            self.pending = list(state["pending"].to(self.accelerator.device))
        self.progress.say(f"going on from step {self.step}")

    def _log_resume(self) -> None:
        """Undoes, for readers of the metrics, what an earlier start wrote after the step we go on from."""
        if self._log_file is not None and self.record.metrics_file.stat().st_size > 0:
            # A start from nothing evaluates step 0 once more, so that line goes too.
            self._log_file.write("resume", self.step if self.step > 0 else -1)

    def _finish(self) -> dict[str, Any]:
        """Saves the final weights, and says what came out."""
        if self.accelerator.is_main_process:
            self._save_model(self.bare_model, "model")
            if self.average is not None:
                self._save_model(self.average.module, "model_ema")
        return {
            **self.evaluated,
            "steps": self.steps,
            self.task.unit: self.task.units(self.task.batch(0)) * self.steps,
            "seconds": self.seconds,
            "parameters": sum(p.numel() for p in self.bare_model.parameters()),
            "pairing": {"weights": self.weights_hash, "batches": self.batches_hash},
            **self.task.summary(),
        }

    def _save_model(self, model: torch.nn.Module, name: str) -> None:
        work, final = self.record.folder / f".model.{os.getpid()}.tmp", self.record.folder / name
        self.task.save_model(model, work)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(work, final)
        sync(self.record.folder)

    def _write(self, kind: str, **values: Any) -> None:
        if self._log_file is not None:
            self._log_file.write(kind, self.step, **values)

    def _to_device(self, batch: Batch, start: int, stop: int) -> Batch:
        """Rows [start, stop) of a batch, with what the task loads for them."""
        rows = self.task.load({name: tensor[start:stop] for name, tensor in batch.items()})
        return {name: tensor.to(self.accelerator.device) for name, tensor in rows.items()}


def share_of(config: schema.Config, accelerator: Accelerator) -> Share:
    """Which rows of a batch this process has. Raises UserError: the batch cannot be shared evenly."""
    size, processes = config.training.batch_size, accelerator.num_processes
    if size % processes:
        raise UserError(f"training.batch_size={size}: cannot be shared evenly by {processes} processes")
    share = size // processes
    micro = config.machine.micro_batch_size or share
    if share % micro:
        raise UserError(
            f"machine.micro_batch_size={micro}: does not divide the {share} sequences that each of {processes} "
            "processes has"
        )
    return Share(accelerator.process_index * share, share, micro, accelerator.process_index, processes)


def _average(model: torch.nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential average of weights and buffers, as timm's ModelEma keeps it; its first update copies."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).requires_grad_(False)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _hash_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _chain(previous: str, batch: Batch) -> str:
    """The hash of all batches so far, from the one before and this batch: a chain, so that a checkpoint can carry
    it.
    """
    digest = hashlib.sha256(previous.encode())
    for name in sorted(batch):
        digest.update(batch[name].contiguous().numpy().data)
    return digest.hexdigest()[:16]
