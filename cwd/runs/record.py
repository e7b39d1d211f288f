"""A run is its content: its key is a hash of everything that can change its numbers, its folder is ``runs/<key>/``.

config.json         the key, the resolved configuration and the data's fingerprint
environment.jsonl   a line for each start: versions, commit, machine
metrics.jsonl       see cwd.runs.metrics
status.json         state, step, who works on it
lock, lock.<n>      who may write here; see cwd.lock
summary.json        the result; only a finished run has one
checkpoints/        while it is not finished
model/              the final weights, and the tokenizer
evaluations/        see cwd.runs.evaluations; only if something was evaluated
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.files import as_json, overwrite, read_json, write_json
from cwd.lock import Lock, is_locked

FORMAT = 1  # raised when the same configuration comes to mean other numbers
KEY_LENGTH = 16
STATES = ("running", "interrupted", "done", "diverged", "failed")
FINISHED = ("done", "diverged")
LOCK = "lock"
PATIENCE = 1.0  # seconds that a starter waits for the lock, which a reader holds for an instant


def run_key(identity: dict[str, Any], data_fingerprint: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the identity (plain nested data), the data's fingerprint and the
    format.
    """
    return digest({"format": FORMAT, "config": identity, "data": data_fingerprint})


def digest(content: dict[str, Any]) -> str:
    """KEY_LENGTH hexadecimal digits of the SHA-256 of plain nested data."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class Record:
    """A run's folder. Reading needs no lock; writing is for the one process that holds :meth:`lock`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        self._lock: Lock | None = None  # while this object holds it

    @classmethod
    def create(cls, root: Path, identity: dict[str, Any], data: dict[str, Any], everything: dict[str, Any]) -> Record:
        """The record of this identity under `root`, its folder and config.json made if new.

        Args:
            root: the runs folder.
            identity: what takes part in the key.
            data: the data's description; must hold ``fingerprint``.
            everything: the whole resolved configuration, for the reader.

        Raises:
            UserError: the folder cannot be written.
        """
        record = cls(root / run_key(identity, data["fingerprint"]))
        try:
            record.folder.mkdir(parents=True, exist_ok=True)
            if not record.description:
                write_json(
                    record.folder / "config.json",
                    {"key": record.key, "format": FORMAT, "data": data, "identity": identity, "config": everything},
                )
        except OSError as error:
            raise UserError(f"machine.runs={root}: cannot be written ({error.strerror})") from error
        return record

    @property
    def description(self) -> dict[str, Any]:
        """config.json; {} if it is not there, not readable, or not what the folder's name is the key of."""
        found = _read_object(self.folder / "config.json")
        data = found.get("data")
        if not isinstance(data, dict) or not isinstance(found.get("identity"), dict):
            return {}
        return found if run_key(found["identity"], data.get("fingerprint", "")) == self.key else {}

    @property
    def config(self) -> dict[str, Any]:
        """The whole resolved configuration."""
        return self.description.get("config") or {}

    @property
    def status(self) -> dict[str, Any]:
        """status.json, {"state": "new", "step": 0} if there is none.

        A run whose process is gone reads as interrupted. The result counts more than the status: with it a run is done
        whatever else was lost, without it a run is not done.
        """
        status = {"state": "new", "step": 0, **_read_object(self.folder / "status.json")}
        if (summary := self.summary) is not None:
            return {**status, "state": "done", "step": summary.get("steps", status["step"])}
        if status["state"] == "done" or (status["state"] == "running" and not self.is_locked()):
            status["state"] = "interrupted"
        return status

    @property
    def summary(self) -> dict[str, Any] | None:
        """summary.json; None unless the run is done. A summary that does not match its checksum is none."""
        found = _read_object(self.folder / "summary.json")
        checksum = found.pop("checksum", None)
        return found if found and checksum == digest(found) else None

    @property
    def metrics_file(self) -> Path:
        """Where the metrics are."""
        return self.folder / "metrics.jsonl"

    def set_status(self, state: str, step: int, **more: Any) -> None:
        """Writes the status, on a full disk over the one that is there. `more`: message, traceback of a failure."""
        assert state in STATES, state
        self.confirm()
        who = {"host": socket.gethostname(), "pid": os.getpid(), "updated": now()}
        path, status = self.folder / "status.json", {"state": state, "step": step, **who, **more}
        try:
            write_json(path, status)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
                raise
            overwrite(path, _within(status, path))

    def finish(self, summary: dict[str, Any], step: int) -> None:
        """Writes the summary, then the status "done": in that order, so that a done run always has its result."""
        self.confirm()
        write_json(self.folder / "summary.json", {**summary, "checksum": digest(summary)})
        self.set_status("done", step)

    def add_environment(self, environment: dict[str, Any]) -> None:
        """Appends a line about where this start runs."""
        self.confirm()
        with open(self.folder / "environment.jsonl", "a") as file:
            file.write(json.dumps({"started": now(), **environment}) + "\n")

    @contextlib.contextmanager
    def lock(self, patience: float | None = None) -> Iterator[None]:
        """Holds the run for this process, however it ends.

        Args:
            patience: seconds to wait for another process; PATIENCE if not given.

        Raises:
            Busy: another process holds it.
            UserError: the folder cannot be written.
        """
        with contextlib.ExitStack() as stack:
            lock = Lock(self.folder / LOCK, f"run {self.key}")
            try:
                stack.enter_context(lock.held(PATIENCE if patience is None else patience))
            except OSError as error:
                raise UserError(f"run {self.key}: {self.folder} cannot be written ({error.strerror})") from error
            self._lock = lock
            stack.callback(setattr, self, "_lock", None)
            yield

    def confirm(self) -> None:
        """Before what is shared is written: raises Lost if another process has taken the run over, and
        FileNotFoundError if the folder is gone. Whoever never took the lock is not asked.
        """
        if self._lock is not None:
            self._lock.confirm()

    def is_locked(self) -> bool:
        """Whether some process holds the run now. Readers do not see each other."""
        return is_locked(self.folder / LOCK)


def _within(status: dict[str, Any], path: Path) -> bytes:
    """The status as JSON, with so much of the end of its traceback as the file's blocks have room for."""
    content, there = as_json(status), path.stat()
    excess = len(content) - max(there.st_blocks * 512, there.st_size)
    if excess <= 0 or "traceback" not in status:
        return content
    return as_json({**status, "traceback": status["traceback"][excess:]})


def all_records(root: Path) -> list[Record]:
    """Every record under `root`, by key."""
    if not root.is_dir():
        return []
    return [Record(folder) for folder in sorted(root.iterdir()) if (folder / "config.json").is_file()]


def _read_object(path: Path) -> dict[str, Any]:
    """The file's JSON object; {} if it is absent or holds anything else."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
