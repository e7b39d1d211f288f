"""Weights & Biases as a tracker: online if you have logged in, otherwise in the run's folder, for
``scripts/runs.py sync``.

A run that goes on keeps its id, the run's key. Online the steps that are there already stay as they are (they are the
same numbers); offline each start is a folder of its own, and wandb appends them when they are synced in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cwd import schema
from cwd.naming import run_name
from cwd.runs import Record
from cwd.training.tracker import shown

START_TIMEOUT = 10  # seconds that the server may take to answer before we go offline
UPLOAD_TIMEOUT = 10  # seconds that the end of a run, and of the process, may wait for uploads

FLUSH = "x_transaction_log_flush_interval"  # to disk, in seconds; at wandb's own 15 a kill would lose more
FLUSH_EVERY = 1.0

_unreachable = False  # in this process; the next run does not wait for the server again


class WandbSink:
    """A run of wandb."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: dict[str, Any], step: int) -> None:
        """See cwd.training.tracker.Sink."""
        self._run.log(values, step=step)

    def finish(self, summary: dict[str, Any]) -> None:
        """See cwd.training.tracker.Sink."""
        self._run.summary.update(summary)
        self._run.finish(exit_code=int("state" in summary))


def wandb_opener(config: schema.Config, record: Record, say: Callable[[str], None]) -> Callable[[int], WandbSink]:
    """What opens the run's wandb run. Raises ImportError if wandb is not there."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault(
        "WANDB_ERROR_REPORTING", "false"
    )  # reports on wandb itself, which a process waits for at its end
    import wandb

    return lambda after: WandbSink(_open(wandb, _arguments(wandb, config, record), say))


def _open(wandb: Any, arguments: dict[str, Any], say: Callable[[str], None]) -> Any:
    """Offline if nobody is logged in or the server does not answer as it should."""
    global _unreachable
    mode = "offline" if _unreachable else os.environ.get("WANDB_MODE")
    try:
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        return wandb.init(mode=mode, **arguments)
    except Exception as error:
        if mode == "offline":
            raise
        _unreachable = True
        wandb.teardown()  # its service still holds the run's id
        run = wandb.init(mode="offline", **arguments)
        say(f"tracker: {shown(error)}; offline, in the run's folder: python scripts/runs.py sync")
        return run


def _arguments(wandb: Any, config: schema.Config, record: Record) -> dict[str, Any]:
    tracker = config.tracker
    private = {FLUSH: FLUSH_EVERY} if FLUSH in wandb.Settings.model_fields else {}
    return {
        "project": tracker.project,
        "group": tracker.group,
        "name": f"{tracker.label} seed {config.seed}" if tracker.label else run_name(config),
        "tags": list(dict.fromkeys([*tracker.tags, config.scale, config.optimizer.name, config.decay.mode])),
        "id": record.key,
        "resume": "allow",
        "dir": record.folder,
        "config": record.config,
        "settings": wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            init_timeout=START_TIMEOUT,
            finish_timeout=UPLOAD_TIMEOUT,
            finish_timeout_raises=True,
            reinit="create_new",  # a run of this process that still uploads is another one
            **private,
        ),
    }
