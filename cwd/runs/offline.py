"""Runs that wandb kept offline, sent to its server: every ``offline-run-*`` folder under a record, in order.

A run that went on after a stop has a folder for each start, all with one id; `wandb sync` appends one after the other,
and marks what arrived with a file beside it, which is what is believed here: its exit status says 0 in other cases too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cwd.errors import UserError
from cwd.runs.record import Record

COMMAND = (sys.executable, "-m", "wandb", "sync")
HEADER = 7  # bytes that every log of wandb begins with
GIVE_UP = 3  # runs in a row of which nothing arrived


def unsynced(record: Record) -> list[Path]:
    """The run's offline folders that did not arrive yet, oldest first; but not those of a start that was killed before
    it had written anything.
    """
    folders = sorted((record.folder / "wandb").glob("offline-run-*"))  # the name begins with the time
    return [folder for folder in folders if any(map(_waits, folder.glob("*.wandb")))]


def sync(records: Sequence[Record], say: Callable[[str], None]) -> int:
    """Sends what is offline, run by run, and says what became of each; how many runs are left to do.

    Runs that are being trained are left for later.

    Raises:
        UserError: nothing arrives.
    """
    waiting = [(record, folders) for record in records if (folders := unsynced(record))]
    if not waiting:
        say("nothing to sync: no run has offline data of wandb")
    failures, left = 0, 0
    for number, (record, folders) in enumerate(waiting, 1):
        where = f"{number}/{len(waiting)}  {record.folder}"
        if record.is_locked():
            say(f"{where}  is being trained; later")
            left += 1
            continue
        reason = [_send(folder) for folder in folders][-1]  # one by one: wandb refuses all for one that is damaged
        count = len(folders) - len(unsynced(record))
        starts = f"{count} of {len(folders)} starts" if len(folders) > 1 else "synced" if count else "not synced"
        say(f"{where}  {starts}" + (f": {reason}" if count < len(folders) else ""))
        failures = 0 if count else failures + 1
        left += count < len(folders)
        if failures == GIVE_UP:
            raise UserError(f"wandb sync: nothing arrives ({reason}); wandb login, then the same command again")
    return left


def _send(folder: Path) -> str:
    """Calls wandb, and returns the last line that it says."""
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"}  # reports on wandb itself, which take their time
    environment.pop("WANDB_SILENT", None)
    ended = subprocess.run(
        [*COMMAND, str(folder)], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    return lines[-1].removeprefix("wandb: ")[:200] if lines else f"exit status {ended.returncode}"


def _waits(log: Path) -> bool:
    return log.stat().st_size > HEADER and not log.with_name(f"{log.name}.synced").exists()
