"""Runs on several processes, for the tests of parallel training."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import ROOT

Case = dict[str, Any]


class Ended(NamedTuple):
    """How a process ended, and what it printed."""

    status: int
    out: str


def case(folder: str, *overrides: str, **how: Any) -> Case:
    """A run for :mod:`tests.parallel_worker`; what it leaves lies under this folder."""
    return {"folder": folder, "overrides": [*overrides, "machine.device=cpu"], **how}


def launch(
    folder: Path, count: int, cases: list[Case], other: list[Case] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Trains the cases on `count` processes, one run after another, and returns the processes.

    `other`: the cases of the last process, if they differ.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(count):
        own = cases if other is None or rank < count - 1 else other
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        log = (folder / f"process{rank}.log").open("w")
        words = [sys.executable, "-m", "tests.parallel_worker", str(folder), json.dumps(own)]
        started.append(subprocess.Popen(words, cwd=ROOT, env={**shared, **place}, stdout=log, stderr=subprocess.STDOUT))
    return started


def wait(folder: Path, processes: list[subprocess.Popen[bytes]], seconds: float = 280) -> list[Ended]:
    """How they ended; none is left behind."""
    try:
        statuses = [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(status, (folder / f"process{rank}.log").read_text()) for rank, status in enumerate(statuses)]


def together(folder: Path, count: int, cases: list[Case], seconds: float = 280) -> None:
    """Trains the cases on `count` processes; all must end well."""
    for ended in wait(folder, launch(folder, count, cases), seconds):
        assert ended.status == 0, ended.out[-4000:]
