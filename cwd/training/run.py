"""One run, from configuration to summary: find it if it is done, go on with it if it is not."""

from __future__ import annotations

import dataclasses
import os
import shlex
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from cwd import schema
from cwd.config import identity
from cwd.errors import UserError
from cwd.runs import Record
from cwd.runs.record import FINISHED
from cwd.training.progress import Progress, duration
from cwd.training.sources import load_data

WAIT = 7 * 24 * 3600.0  # seconds
MAIN = int(os.environ.get("RANK", "0")) == 0


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to. ``summary`` is None unless the state is "done"."""

    state: str
    record: Record
    summary: dict[str, Any] | None


def run(config: schema.Config, overrides: Sequence[str] = (), wait: bool = False) -> Result:
    """Trains the run that `config` describes, or returns it at once if it is done.

    Args:
        overrides: the words of the command line that led to it, for the command that is shown at the end.
        wait: wait for another process that works on the run, as one of two sweeps that share it must.

    Raises:
        UserError: something the user gave does not work, or another process holds the run (RunBusy).
        Interrupted: a signal came; the run is saved and goes on when it is asked for again.
    """
    if config.machine.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(config.machine.threads))
    kind = Progress.resolve(config.machine.progress) if MAIN else "none"
    progress = Progress(kind, config.training.steps, "tokens" if _is_text(config) else "images")
    data, description = load_data(config, progress.say)
    everything = dataclasses.asdict(config)
    record = Record.create(Path(config.machine.runs), identity(config), description, everything)
    found = _finished(record)
    if found is None:
        with record.lock(WAIT if wait else None) if MAIN else nullcontext():
            found = _finished(record)  # by the process that we waited for
            result = found or _train(config, data, record, progress)
    _tell(found or result, config, progress, found is not None)
    _tell_next(found or result, config, progress, overrides)
    return found or result


def _finished(record: Record) -> Result | None:
    state = record.status["state"]
    return Result(state, record, record.summary) if state in FINISHED else None


def _train(config: schema.Config, data: Any, record: Record, progress: Progress) -> Result:
    """Imports what is heavy, and keeps the record's status true whatever happens."""
    from cwd.training.session import train  # torch, transformers and accelerate come with it

    try:
        return Result(*train(config, data, record, progress))
    except Exception as error:
        if MAIN:
            message = str(error) if isinstance(error, UserError) else traceback.format_exc()
            with suppress(OSError):  # the disk may be what failed
                record.set_status("failed", record.status["step"], message=message)
        raise
    finally:
        progress.close()


def _tell(result: Result, config: schema.Config, progress: Progress, found: bool) -> None:
    values = f"lr {config.optimizer.lr:g} lambda {config.decay.weight_decay:g} seed {config.seed}"
    arm = f"{config.optimizer.name:<5} {config.decay.mode:<9} {values}"
    if result.summary is None:
        progress.result(f"diverged  {arm}: {result.record.status.get('message', '')}  {result.record.folder}")
        return
    summary = result.summary
    metrics = "  ".join(
        f"{name} {summary[name]:.4f}" for name in ("loss", "accuracy", "top1", "ema_top1") if name in summary
    )
    when = "found" if found else "done "
    progress.result(f"{when}  {arm}  {metrics}  ({duration(summary['seconds'])})  {result.record.folder}")


def _tell_next(result: Result, config: schema.Config, progress: Progress, overrides: Sequence[str]) -> None:
    """What the numbers are, and what to type next."""
    other = "decoupled" if config.decay.mode == "cautious" else "cautious"
    same = [word for word in overrides if not word.startswith(("decay=", "decay.mode="))]
    text, images = (
        "loss in nats per token on held-out text; accuracy of the next token",
        "loss in nats; top1 in percent",
    )
    progress.say(f"       {text if _is_text(config) else images}")
    progress.say(f"next   python train.py {shlex.join([*same, f'decay={other}'])}   the other arm, on the same batches")
    progress.say(f"       python scripts/runs.py show {result.record.key[:6]}   this run; scripts/runs.py lists all")


def _is_text(config: schema.Config) -> bool:
    return isinstance(config.dataset, schema.Dataset)
