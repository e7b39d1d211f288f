"""One training session of a run: devices, task, trainer, tracker, from start to whatever end."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers.utils import logging as transformers_logging

from cwd import schema
from cwd.data.tokens import TokenData
from cwd.runs import Record
from cwd.runs.environment import describe_environment
from cwd.training.checkpoint import remove_checkpoints
from cwd.training.memory import keep_freed_memory
from cwd.training.parallel import open_accelerator, share_of
from cwd.training.processes import Processes
from cwd.training.progress import Progress
from cwd.training.signals import Interrupted, Interrupts, follow_parent
from cwd.training.tasks import Task
from cwd.training.tracker import open_tracker
from cwd.training.trainer import Diverged, Trainer

NO_TRACKER = schema.Tracker(name="none")


def train(
    config: schema.Config, data: Any, record: Record, progress: Progress, processes: Processes
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
    accelerator = open_accelerator(config, processes.count)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    main = accelerator.is_main_process
    try:
        with Interrupts() as interrupts:
            task = open_task(config, data, accelerator, progress)
            if main:
                record.set_status("running", record.status["step"], steps=config.training.steps)
                place = accelerator.device, accelerator.num_processes, config.machine.sharding
                record.add_environment(describe_environment(*place))
            tracker = open_tracker(config.tracker if main else NO_TRACKER, config, record, progress.warn)
            trainer = Trainer(config, task, record, accelerator, progress, tracker, interrupts)
            processes.agree({"the initial weights": trainer.weights_hash})
            _introduce(record, trainer, progress)
            return _fit(trainer)
    finally:
        # Another run in this process may want another precision, which accelerate's shared state would refuse.
        AcceleratorState._reset_state()


def _fit(trainer: Trainer) -> tuple[str, Record, dict[str, Any] | None]:
    record, main = trainer.record, trainer.accelerator.is_main_process
    state, summary = "failed", None
    try:
        summary = trainer.fit()
        state = "done"
        if main:
            record.finish(summary, trainer.step)
            remove_checkpoints(record.folder / "checkpoints")  # not before: a kill in between would cost the whole run
    except Diverged as error:
        state = "diverged"
        if main:
            record.set_status("diverged", error.step, message=str(error))
            remove_checkpoints(record.folder / "checkpoints")
    except Interrupted as error:
        state = "interrupted"
        if main:
            record.set_status("interrupted", error.step, steps=trainer.steps)
        trainer.progress.close()
        trainer.progress.warn(f"interrupted at step {error.step}, saved; the same command goes on from there")
        raise
    finally:
        trainer.tracker.finish(summary or {"state": state})
    return state, record, summary


def open_task(config: schema.Config, data: Any, accelerator: Accelerator, progress: Progress) -> Task:
    """What the data is for."""
    if isinstance(data, TokenData):
        from cwd.training.tasks.language import LanguageTask

        return LanguageTask(config, data)
    if isinstance(config.dataset, schema.Instructions):
        from cwd.training.tasks.finetune import FinetuneTask

        return FinetuneTask(config, *data)
    from cwd.training.tasks.vision import VisionTask  # timm comes with it

    return VisionTask(config, data, share_of(config, accelerator), progress.warn)


def _introduce(record: Record, trainer: Trainer, progress: Progress) -> None:
    """Who is trained on what, and who got which rule."""
    progress.say(f"run    {record.folder}")
    for line in trainer.task.describe(trainer.bare_model):
        progress.say(line)
    for line in trainer.groups:
        progress.say(textwrap.fill(f"group  {line}", 100, subsequent_indent=" " * 7, break_on_hyphens=False))
