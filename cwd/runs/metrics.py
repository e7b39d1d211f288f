"""The metrics file: one JSON object a line, only ever appended to.

A run that is killed leaves lines from after its last checkpoint, and perhaps a torn last line. When it goes on, a line
of kind "resume" says from which step; the reader forgets what came later than that before it, so that the series it
returns is the one of an undisturbed run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to a metrics file. Each line goes to the operating system at once, so kill -9 loses none."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by close)
        self.torn = False  # whether the last line was cut off, by a kill or a full disk
        if self._file.seek(0, os.SEEK_END) > 0:
            self._file.seek(-1, os.SEEK_END)
            self.torn = self._file.read(1) != b"\n"
        if self.torn:
            self._append(b"\n")

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One line. `step` is the number of updates done. Floats that are not finite become null."""
        line = json.dumps({"kind": kind, "step": step, **_finite(values)}, allow_nan=False)
        self._append(line.encode() + b"\n")

    def _append(self, content: bytes) -> None:
        """In one write, but for a disk that becomes full, which takes a part before it says so."""
        while content:
            content = content[self._file.write(content) :]

    def sync(self) -> None:
        """Makes the lines so far durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Makes the file durable and closes it."""
        self.sync()
        self._file.close()


def read_metrics(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines that count, in order, all or those of one kind; without the resume lines and what they undo. [] if no
    file.
    """
    kept: list[dict[str, Any]] = []
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    for line in raw.split(b"\n"):
        record = _parse(line)
        if record is None:
            continue
        if record["kind"] == "resume":
            kept = [earlier for earlier in kept if earlier["step"] <= record["step"]]
        else:
            kept.append(record)
    return [record for record in kept if kind in (None, record["kind"])]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # a torn line
        return None
    return record if isinstance(record, dict) and "kind" in record and "step" in record else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
