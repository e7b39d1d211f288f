"""One training session of a run: devices, task, trainer, tracker, from start to whatever end."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers.utils import logging as transformers_logging

from cwd import schema
from cwd.data.tokens import TokenData
from cwd.errors import UserError
from cwd.runs import Record
from cwd.training.checkpoint import remove_checkpoints
from cwd.training.environment import describe_environment
from cwd.training.memory import keep_freed_memory
from cwd.training.progress import Progress
from cwd.training.signals import Interrupted, Interrupts, follow_parent
from cwd.training.tasks import Task
from cwd.training.tracker import open_tracker
from cwd.training.trainer import Diverged, Trainer, share_of

if TYPE_CHECKING:
    from cwd.training.sources import Data

NO_TRACKER = schema.Tracker(name="none")


def train(
    config: schema.Config, data: Data, record: Record, progress: Progress
) -> tuple[str, Record, dict[str, Any] | None]:
    """Trains to the end and writes the outcome into the record. Returns (state, record, summary).

    Raises:
        Interrupted: a signal came; a checkpoint is written.
        UserError: the configuration does not fit the data, the model or the processes.
    """
    follow_parent()
    if config.machine.threads:
        torch.set_num_threads(config.machine.threads)
    transformers_logging.disable_progress_bar()
    accelerator = _accelerator(config)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    main = accelerator.is_main_process
    try:
        with Interrupts() as interrupts:
            task = open_task(config, data, accelerator, progress)
            if main:
                record.set_status("running", record.status["step"], steps=config.training.steps)
                record.add_environment(describe_environment(accelerator.device, accelerator.num_processes))
            tracker = open_tracker(config.tracker if main else NO_TRACKER, config, record, progress.warn)
            trainer = Trainer(config, task, record, accelerator, progress, tracker, interrupts)
            _introduce(record, trainer, progress)
            return _fit(trainer)
    finally:
        # Another run in this process may want another precision, which accelerate's shared state would refuse.
        AcceleratorState._reset_state()


def _fit(trainer: Trainer) -> tuple[str, Record, dict[str, Any] | None]:
    record, main = trainer.record, trainer.accelerator.is_main_process
    state, summary = "done", None
    try:
        summary = trainer.fit()
        if main:
            record.finish(summary, trainer.step)
            remove_checkpoints(record.folder / "checkpoints")  # not before: a kill in between would cost the whole run
    except Diverged as error:
        state = "diverged"
        if main:
            record.set_status("diverged", error.step, message=str(error))
            remove_checkpoints(record.folder / "checkpoints")
    except Interrupted as error:
        if main:
            record.set_status("interrupted", error.step, steps=trainer.steps)
        trainer.progress.close()
        trainer.progress.warn(f"interrupted at step {error.step}, saved; the same command goes on from there")
        raise
    finally:
        trainer.tracker.finish(summary or {"state": state})
    return state, record, summary


def open_task(config: schema.Config, data: Data, accelerator: Accelerator, progress: Progress) -> Task:
    """What the data is for."""
    if isinstance(data, TokenData):
        from cwd.training.tasks.language import LanguageTask

        return LanguageTask(config, data)
    from cwd.training.tasks.vision import VisionTask  # timm comes with it

    return VisionTask(config, data, share_of(config, accelerator), progress.warn)


def _accelerator(config: schema.Config) -> Accelerator:
    device, precision = config.machine.device, config.training.precision
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device=cuda: torch sees no CUDA device here; allowed are auto and cpu")
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")


def _introduce(record: Record, trainer: Trainer, progress: Progress) -> None:
    """Who is trained on what, and who got which rule."""
    progress.say(f"run    {record.folder}")
    for line in trainer.task.describe(trainer.bare_model):
        progress.say(line)
    for line in trainer.groups:
        progress.say(textwrap.fill(f"group  {line}", 100, subsequent_indent=" " * 7, break_on_hyphens=False))
