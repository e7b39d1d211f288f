"""A sweep of four small runs, watched: what state each is in, how often it was started, and what it came to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.files import sha256_of
from cwd.runs import Record, all_records, read_metrics

CELLS = ("adamw cautious", "adamw decoupled", "lion cautious", "lion decoupled")
FOUR = ("optimizer=adamw,lion", "decay=decoupled,cautious", "training.steps=400")
LONG = ("optimizer=lion", "decay=cautious", "training.steps=3000")  # one run, longer than the shortest time limit
WORDS = (
    "scale=smoke",
    "tracker=none",
    "evaluation.every=100",
    "telemetry.every=0",
    "machine.checkpoint_seconds=1",
    "machine.log_every=1",
    "machine.progress=summary",
)
PATIENCE = 1800.0  # seconds: the machine may be busy
POLL = 0.3  # seconds
MIDDLE = 40  # steps after which a run is in its middle
STARTED: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Seen:
    """A run at one moment."""

    state: str
    step: int
    starts: int

    def __str__(self) -> str:
        return f"{self.state}, step {self.step}" if self.starts else "not begun"


NOT_BEGUN = Seen("new", 0, 0)


def name_of(record: Record) -> str:
    """Which of the four it is."""
    return f"{record.config['optimizer']['name']} {record.config['decay']['mode']}"


def look(runs: Path) -> dict[str, Seen]:
    """The runs that have begun."""
    return {name_of(record): see(record) for record in all_records(runs) if record.config}


def see(record: Record) -> Seen:
    """A run as its record has it now."""
    lines = read_metrics(record.metrics_file, "train")
    started = record.folder / "environment.jsonl"
    starts = len(started.read_text().splitlines()) if started.is_file() else 0
    return Seen(record.status["state"], lines[-1]["step"] if lines else 0, starts)


def middle(runs: Path) -> Record | None:
    """A run that is in its middle."""
    for record in all_records(runs):
        seen = see(record)
        if seen.state == "running" and seen.step > MIDDLE:
            return record
    return None


def outcome(record: Record) -> dict[str, Any]:
    """What a run came to, whatever it took: every loss, norm, rate and evaluation, and the weights' SHA-256."""
    lines = [line for line in read_metrics(record.metrics_file) if line["kind"] in ("train", "eval")]
    metrics = [json.dumps({key: line[key] for key in line if key != "seconds"}, sort_keys=True) for line in lines]
    weights = record.folder / "model" / "model.safetensors"
    return {"metrics": metrics, "weights": sha256_of(weights) if weights.is_file() else None}


def outcomes(runs: Path) -> dict[str, dict[str, Any]]:
    """Of every run that is done."""
    return {name_of(record): outcome(record) for record in all_records(runs) if record.summary}


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Waits for the condition, and returns what made it true.

    Raises:
        UserError: it did not come.
    """
    end = time.monotonic() + patience
    while not (found := condition()):
        if time.monotonic() > end:
            raise UserError(f"waited {patience:.0f} s in vain: {what}")
        time.sleep(POLL)
    return found


def start_sweep(
    code: Path, folder: Path, words: Sequence[str], variables: Mapping[str, str], cells: Sequence[str] = FOUR
) -> subprocess.Popen[bytes]:
    """train.py of the code under `code` on the four runs, or other cells, into ``folder/runs``; what it prints is in
    ``folder/driver.log``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [f"machine.runs={folder / 'runs'}", f"machine.data={folder.parent / 'data'}"]
    command = [sys.executable, str(code / "train.py"), "-m", *cells, *WORDS, *places, *words]
    with open(folder / "driver.log", "ab") as log:
        driver = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True
        )
    STARTED.append(driver)
    return driver


def end_sweeps() -> None:
    """Ends what :func:`start_sweep` has started and is still there."""
    for driver in STARTED:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
