"""One run, from configuration to summary: find it if it is done, go on with it if it is not."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cwd import schema
from cwd.config import identity
from cwd.errors import UserError
from cwd.files import disk_fault
from cwd.lock import Lost
from cwd.naming import row_name
from cwd.runs import Record, run_key
from cwd.runs.attempts import noted
from cwd.runs.record import FINISHED
from cwd.training.processes import Processes, join
from cwd.training.progress import Progress, duration
from cwd.training.sources import load_data

WAIT = 7 * 24 * 3600.0  # seconds


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
        UserError: something the user gave does not work, or another process holds the run (Busy).
        Interrupted: a signal came; the run is saved and goes on when it is asked for again.
    """
    if config.machine.threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(config.machine.threads))
    runs = Path(config.machine.runs)
    with noted(runs, overrides):
        processes = join(config.machine)
    kind = Progress.resolve(config.machine.progress) if processes.main else "none"
    progress = Progress(kind, config.training.steps, "tokens" if _is_text(config) else "images")
    try:
        with noted(runs, overrides):
            data, record = _find(config, progress, processes)
        result, found = _finish(config, data, record, wait, progress, processes)
    except BaseException as error:
        processes.end(None if isinstance(error, SystemExit) else error)
        raise
    processes.end()
    _tell(result, config, progress, found)
    _tell_next(result, config, progress, overrides)
    return result


def _find(config: schema.Config, progress: Progress, processes: Processes) -> tuple[Any, Record]:
    """The data and the record, on whose configuration all processes agree."""
    everything = dataclasses.asdict(config)
    processes.begin(progress.warn)
    processes.agree(everything)
    data, description = processes.in_turn(lambda: load_data(config, progress.say))
    processes.agree({"the data's fingerprint": description["fingerprint"]})
    root, own = Path(config.machine.runs), identity(config)
    record = Record(root / run_key(own, description["fingerprint"]))
    if processes.main:
        if (record.folder / "config.json").exists() and not record.description:
            progress.warn(f"{record.folder / 'config.json'}: damaged, written anew")
        Record.create(root, own, description, everything)
    return data, record


def _finish(
    config: schema.Config, data: Any, record: Record, wait: bool, progress: Progress, processes: Processes
) -> tuple[Result, bool]:
    """The result, and whether it was there already."""
    with _held(record, WAIT if wait else None, processes) as state:
        if state in FINISHED:
            if processes.main:  # a kill after the result may have left them
                shutil.rmtree(record.folder / "checkpoints", ignore_errors=True)
            return Result(state, record, record.summary), True
        return _train(config, data, record, progress, processes), False


@contextmanager
def _held(record: Record, patience: float | None, processes: Processes) -> Iterator[str]:
    """The run's state, the same for all processes, of which the first holds the lock unless it is finished."""
    if not processes.main:
        yield processes.hear()
        return
    state = record.status["state"]
    if state not in FINISHED:
        with record.lock(patience):
            state = record.status["state"]  # another process may have finished it while we waited
            processes.tell(state)
            yield state
    else:
        processes.tell(state)
        yield state


def _train(config: schema.Config, data: Any, record: Record, progress: Progress, processes: Processes) -> Result:
    """Imports what is heavy, and keeps the record's status true whatever happens."""

    def note(message: str, **more: str) -> None:
        if processes.main:
            with suppress(OSError, Lost):  # the disk may be what failed, and the run another's by now
                record.set_status("failed", record.status["step"], message=message, **more)

    def lose(message: str) -> None:
        note(message)
        progress.warn(message)

    processes.on_loss = lose
    try:
        from cwd.training.session import train  # torch, transformers and accelerate come with it

        with _disk_told(record):
            return Result(*train(config, data, record, progress, processes))
    except Exception as error:
        [*_, line] = traceback.format_exception_only(error)
        note(str(error) if isinstance(error, UserError) else line.strip(), traceback=traceback.format_exc())
        raise
    finally:
        progress.close()


@contextmanager
def _disk_told(record: Record) -> Iterator[None]:
    """What a disk refuses becomes one line."""
    try:
        yield
    except OSError as error:
        fault = disk_fault(error, record.folder)
        if fault is None:
            raise
        raise UserError(
            f"run {record.key}: {fault}; what was saved before is intact, and the same command goes on from it"
        ) from error


def _tell(result: Result, config: schema.Config, progress: Progress, found: bool) -> None:
    arm = row_name(
        config.optimizer.name, config.decay.mode, config.optimizer.lr, config.decay.weight_decay, config.seed
    )
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
