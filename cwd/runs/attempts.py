"""Runs of a sweep that failed before they had a record, as the data that their key hashes could not be had.

``runs/.failed/<name>.json`` has message and traceback, by the name of the run's file of cwd.sweeps.write_cells; the
next start of the run removes it.
"""

from __future__ import annotations

import os
import re
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cwd.files import read_json, write_json
from cwd.runs.record import now

FOLDER = ".failed"
CELL = re.compile(r"experiment=([\w-]+)")


def cell_in(overrides: Sequence[str]) -> str | None:
    """The name of the run's file that a run's overrides give; None if they give none."""
    return next((found[1] for word in overrides if (found := CELL.fullmatch(word))), None)


@contextmanager
def noted(root: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Around what comes before a run has its record: an error is written down under `root`, the runs folder, and raised
    again.
    """
    name = cell_in(overrides)
    if name is None:
        yield
        return
    path = root / FOLDER / f"{name}.json"
    with suppress(OSError):
        path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        who = {"host": socket.gethostname(), "pid": os.getpid(), "updated": now()}
        with suppress(OSError):  # the disk may be what failed
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"state": "failed", "message": str(error), "traceback": traceback.format_exc(), **who})
        raise


def early_failures(root: Path) -> dict[str, tuple[str, Path]]:
    """Of each run whose last start failed before it had a record: name -> (message, the file with the traceback)."""
    found = {path.stem: (_message(read_json(path)), path) for path in (root / FOLDER).glob("*.json")}
    return dict(sorted(found.items()))


def _message(about: Any) -> str:
    return str(about.get("message", "")).partition("\n")[0] if isinstance(about, dict) else ""
