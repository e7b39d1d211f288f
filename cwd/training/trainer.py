"""The training loop, driven by accelerate. It knows no task: batch, loss and metrics come from the task object.

Everything that happens in a step is a pure function of the weights, the optimizer's state and the step's number, so a
run that is stopped anywhere and goes on from a checkpoint ends with the same bits.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cwd import schema
from cwd.errors import UserError
from cwd.files import disk_errors, sync
from cwd.models.flops import flops_per_token
from cwd.runs import MetricsLog, Record
from cwd.training.checkpoint import load_checkpoint
from cwd.training.compiling import to_compile
from cwd.training.optimizer import build_optimizer
from cwd.training.pairing import chain, hash_weights
from cwd.training.parallel import accumulating, computing, distribute, largest, share_of, whole, whole_weights
from cwd.training.precision import WEIGHTS
from cwd.training.profile import Trace
from cwd.training.progress import Progress
from cwd.training.saving import Saver
from cwd.training.schedule import lr_factor
from cwd.training.signals import Interrupted, Interrupts
from cwd.training.tasks import Batch, Task, chunks
from cwd.training.throughput import Speedometer
from cwd.training.tracker import Tracker
from cwd.training.validation import evaluate, load

SAVING = 0.02  # of the time that checkpoints may take: where one takes long, they come less often


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
        self.weights_hash = hash_weights(self.bare_model)
        self.parameters = sum(p.numel() for p in self.bare_model.parameters())
        self.precision = config.training.precision
        flops = flops_per_token(self.bare_model, config.training.seq_len) if task.unit == "tokens" else None  # type: ignore[arg-type]
        self.speed = Speedometer(accelerator, self.precision, task.unit, flops)
        compiled = to_compile(config, flops, accelerator.device)
        self.model = distribute(self.bare_model.to(WEIGHTS[self.precision]), config, accelerator, compiled)
        self.rule_optimizer, self.groups = build_optimizer(config, self.bare_model, compiled)
        self.optimizer = accelerator.prepare(self.rule_optimizer)
        self.average = _average(self.bare_model, config)
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
            self._saver.close()
            self._trace.close()
            if self._log_file is not None:
                self._log_file.close()

    def start(self) -> None:
        """Goes to the last checkpoint, if there is one, and opens the metrics."""
        self._resume()
        self._log_file = MetricsLog(self.record.metrics_file) if self.accelerator.is_main_process else None
        self._log_resume()
        if self._log_file is not None and self._log_file.torn:
            self.progress.warn(f"{self.record.metrics_file}: the last line was cut off, and is passed over")
        self.tracker.begin(self._after)
        self._started = self._saved = time.monotonic()
        self._save_cost = 0.0  # seconds, of the last checkpoint
        where = self.bare_model, self.rule_optimizer, self.accelerator
        background = self.config.machine.checkpoint_background
        self._saver = Saver(self._checkpoints, *where, background, self.record.confirm)
        self._first_step, self._seconds_before, self._units_here = self.step, self.seconds, 0
        traced = self.config.machine.profile if self.accelerator.is_main_process else 0
        self._trace = Trace(traced, self.record.folder, self.progress.say)

    def advance(self) -> None:
        """One update and whatever is due after it."""
        measured = _due(self.step + 1, self.config.telemetry.every) or (self.step == 0 and self.config.telemetry.every)
        self.rule_optimizer.measure = bool(measured)
        self.speed.go()
        self._update()
        self.step += 1
        self._trace.step()
        last = self.step == self.steps
        self._note_saved(wait=last)  # of a run's last checkpoint, the cost goes into the last line of speed
        self.seconds = self._seconds_before + time.monotonic() - self._started
        if _due(self.step, self.config.machine.log_every) or last:
            self._log_training()
        if measured:
            self._write("telemetry", **self.rule_optimizer.take_measures())
        if _due(self.step, self.config.evaluation.every) or last:
            self._log_speed()
            self._evaluate()
        if not last:
            self._save_or_leave()

    def _save_or_leave(self) -> None:
        """A checkpoint if the time for it has come or a signal came; after a signal, the end."""
        between = self.config.machine.checkpoint_seconds
        old = time.monotonic() - self._saved >= (max(between, self._save_cost / SAVING) if between else 0)
        # Clocks, disks and signals differ between processes, and all must do the same.
        writing = between > 0 and self._saver.busy
        due, busy, signal = map(int, largest(self.accelerator, old, writing, self.interrupts.signal))
        if signal or (due and not busy):
            self._save(at_once=signal > 0)
        if signal:
            raise Interrupted(signal, self.step)

    def _update(self) -> None:
        """One optimizer update on the step's batch, accumulated over micro-batches."""
        with self.speed.data():
            batch = self.task.batch(self.step)
            self.batches_hash = chain(self.batches_hash, batch)
        units = self.task.units(batch)
        self._units_here += units
        self._seed_step()
        factor = lr_factor(self.config.schedule, self.step, self.steps)
        for group in self.rule_optimizer.param_groups:
            group["lr"] = self.config.optimizer.lr * group["lr_multiple"] * factor
        loss = self._accumulate(batch)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm or math.inf)
        with self.speed.optimizer():
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.bare_model)
        self.pending.append(torch.stack([loss, whole(norm.detach()).to(loss.dtype)]))
        self.speed.count(units)

    def _seed_step(self) -> None:
        """Makes what a model draws in this step (dropout) a function of (seed, step, process)."""
        seed = hash((self.config.seed, self.step, self.accelerator.process_index)) & 0x7FFFFFFFFFFFFFFF
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every kind of device, each time
        if self.accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _accumulate(self, batch: Batch) -> torch.Tensor:
        """Gradients of the mean loss over this process's share of the batch; returns that loss, 0-D."""
        device, first = self.accelerator.device, self.share.first
        total = torch.zeros((), dtype=WEIGHTS[self.precision], device=device)
        for start, stop in chunks(self.share.rows, self.share.at_once):
            with self.speed.data():
                piece = load(self.task, batch, device, first + start, first + stop)
            with accumulating(self.accelerator, self.model, last=stop == self.share.rows):
                with computing(self.accelerator, self.model, self.precision):
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
            {
                "train/loss": loss,
                "train/grad_norm": norm,
                "train/lr": self.rule_optimizer.param_groups[0]["lr"],
                f"train/{self.task.unit}_per_second": rate,
            },
            self.step,
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

    def _log_speed(self) -> None:
        """A line with what the updates since the last one cost."""
        found = self.speed.take()
        if found is not None:
            self._write("speed", **found)
            self.tracker.log({f"speed/{name}": value for name, value in found.items() if value is not None}, self.step)

    def _evaluate(self) -> None:
        """Metrics on the evaluation set."""
        with computing(self.accelerator, self.model, self.precision):
            metrics = evaluate(self.model, self.task, self.accelerator, self.share.at_once, self.average)
        if not math.isfinite(metrics["loss"]):
            raise Diverged(self.step, "the evaluation loss")
        self.evaluated = metrics
        self._write("eval", **metrics)
        self.tracker.log({f"eval/{name}": value for name, value in metrics.items()}, self.step)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.progress.say(f"step {self.step}/{self.steps}  evaluation: {shown}")

    def _save(self, at_once: bool = False) -> None:
        """A checkpoint of the current step, begun or, `at_once`, on the disk. The losses since the last line are
        checked first: a broken state is not worth keeping.
        """
        self.speed.stop()
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
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        self._saver.save(self.step, state, at_once)
        self._saved = time.monotonic()
        self._note_saved()

    def _note_saved(self, wait: bool = False) -> None:
        """Writes down which checkpoints have come to the disk; `wait`: also the one that is being written."""
        if wait and self._saver.busy:
            self.speed.stop()
            self._saver.wait()
        for saved in self._saver.take_saved():
            if self.accelerator.is_main_process:
                self.record.set_status("running", saved.step, steps=self.steps)
            # On a CPU the thread takes a core from training; beside an accelerator it takes nothing.
            shared = saved.computing if self.accelerator.device.type == "cpu" else 0.0
            self._save_cost = saved.waited + shared
            self.speed.saved(saved.waited, saved.behind, saved.size)

    def _resume(self) -> None:
        where = self.bare_model, self.rule_optimizer, self.accelerator
        state = load_checkpoint(self._checkpoints, *where, self.progress.warn, self._check_state)
        if state is None:
            return
        self.step, self.seconds, self.batches_hash = state["step"], state["seconds"], state["batches_hash"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if state["pending"] is not None:
            self.pending = list(state["pending"].to(self.accelerator.device))
        self.progress.say(f"going on from step {self.step}")

    def _check_state(self, state: dict[str, Any]) -> None:
        if state["weights_hash"] != self.weights_hash:
            raise UserError(
                f"run {self.record.key}: its checkpoint began from other initial weights than this installation draws "
                f"for seed {self.config.seed} (another version of torch?); remove {self.record.folder} to start it anew"
            )

    def _log_resume(self) -> None:
        """Undoes, for readers of the metrics, what an earlier start wrote after the step we go on from."""
        if self._log_file is not None and self.record.metrics_file.stat().st_size > 0:
            self._log_file.write("resume", self._after)

    def _finish(self) -> dict[str, Any]:
        """Saves the final weights, and says what came out."""
        weights = whole_weights(self.bare_model)
        if self.accelerator.is_main_process:
            self._save_model(self.bare_model, weights, "model")
            if self.average is not None:
                self._save_model(self.average.module, self.average.module.state_dict(), "model_ema")
        return {
            **self.evaluated,
            "steps": self.steps,
            self.task.unit: self.task.units(self.task.batch(0)) * self.steps,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "pairing": {"weights": self.weights_hash, "batches": self.batches_hash},
            **self.task.summary(),
        }

    @property
    def _after(self) -> int:
        """The step up to which lines stand when a start begins: one from nothing evaluates step 0 once more."""
        return self.step if self.step > 0 else -1

    @property
    def _checkpoints(self) -> Path:
        return self.record.folder / "checkpoints"

    def _save_model(self, model: torch.nn.Module, weights: dict[str, torch.Tensor], name: str) -> None:
        work, final = self.record.folder / f".model.{os.getpid()}.tmp", self.record.folder / name
        self.record.confirm()
        with disk_errors(self.record.folder):
            self.task.save_model(model, weights, work)
        self.record.confirm()
        shutil.rmtree(final, ignore_errors=True)
        os.rename(work, final)
        sync(self.record.folder)

    def _write(self, kind: str, **values: Any) -> None:
        if self._log_file is not None:
            self.record.confirm()
            self._log_file.write(kind, self.step, **values)


def _average(model: torch.nn.Module, config: schema.Config) -> AveragedModel | None:
    """An exponential average of weights and buffers, as timm's ModelEma keeps it; its first update copies.

    Raises:
        UserError: the model is divided among processes.
    """
    if config.recipe.ema is None:
        return None
    if config.machine.sharding != "none":
        raise UserError(f"machine.sharding={config.machine.sharding}: not with recipe.ema, whose copy is not divided")
    average = get_ema_multi_avg_fn(config.recipe.ema)
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
