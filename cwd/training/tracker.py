"""Trackers: a view of the metrics for people. Whatever happens to a tracker, the run goes on; its metrics file is the
record.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cwd import schema
from cwd.runs import Record

START_TIMEOUT = 20  # seconds that wandb may take to reach its server before we go offline


class Tracker:
    """Forwards to a tracker's run until its first failure, which is said once."""

    def __init__(self, start: Callable[[], Any], say: Callable[[str], None]) -> None:
        self._say = say
        self._run: Any = None
        self._run = self._try(start)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Numbers of one step, by name."""
        if self._run is not None:
            self._try(lambda: self._run.log(values, step=step))

    def finish(self, summary: dict[str, Any]) -> None:
        """The result; closes the tracker's run."""
        if self._run is not None:
            self._try(lambda: self._run.summary.update(summary))
        if self._run is not None:
            self._try(lambda: self._run.finish())

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever it is, it is not the run's business
            reason = " ".join(str(error).split())[:200]
            self._say(f"tracker: {type(error).__name__}: {reason}; going on without it")
            self._run = None
            return None


def open_tracker(choice: schema.Tracker, config: schema.Config, record: Record, say: Callable[[str], None]) -> Tracker:
    """The chosen tracker, attached to the record. Never raises."""
    if choice.name == "wandb":
        return Tracker(lambda: _start_wandb(config, record, say), say)
    return Tracker(lambda: None, say)


def _start_wandb(config: schema.Config, record: Record, say: Callable[[str], None]) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in(wandb) else "offline")
    arguments: dict[str, Any] = {
        "project": config.tracker.project,
        "group": config.tracker.group,
        "name": f"{config.optimizer.name} {config.decay.mode} seed {config.seed} {record.key[:6]}",
        "id": record.key,
        "dir": record.folder,
        "config": record.config,
        "tags": [config.scale, config.optimizer.name, config.decay.mode],
        "resume": "allow" if mode == "online" else None,
        "settings": wandb.Settings(silent=True, console="off", init_timeout=START_TIMEOUT, disable_git=True),
    }
    try:
        return wandb.init(mode=mode, **arguments)
    except Exception:
        if mode != "online":
            raise
        say("tracker: wandb's server cannot be reached; offline, in the run's folder")
        wandb.teardown()  # its service still holds the run's id
        return wandb.init(mode="offline", **{**arguments, "resume": None})


def _logged_in(wandb: Any) -> bool:
    return bool(os.environ.get("WANDB_API_KEY") or wandb.setup().settings.api_key)
