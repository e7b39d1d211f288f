"""Small runs for the tests of training."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cwd.config import Config
from cwd.runs import Record, read_metrics
from cwd.sweeps import compose_config
from cwd.training.run import Result, run

REAL_SAVE = torch.save
TIMINGS = ("seconds",)  # all that may differ between two runs of the same key


def smoke_config(folder: Path, *overrides: str) -> Config:
    """A run of a few steps whose record and data live under `folder`."""
    place = [f"machine.runs={folder}/runs", f"machine.data={folder}/data", "machine.progress=summary"]
    return compose_config(["scale=smoke", "tracker=none", *place, *overrides])


def train(folder: Path, *overrides: str) -> Result:
    return run(smoke_config(folder, *overrides))


def in_child(action: Callable[[], Any]) -> int:
    """Runs `action` in a forked process, which may die; returns its exit code (-9: killed)."""
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    child.join(timeout=120)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def outcome(record: Record) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how it came to its end: metrics, summary, weights."""
    lines = [line for line in read_metrics(record.metrics_file) if line["kind"] != "speed"]
    metrics = [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]
    summary = {k: v for k, v in (record.summary or {}).items() if k not in TIMINGS}
    weights = {path.name: path.read_bytes() for path in (record.folder / "model").iterdir()}
    return {"metrics": json.loads(json.dumps(metrics)), "summary": summary, "weights": weights}


def save_on_a_full_disk(state: dict[str, Any], path: Path) -> None:
    """In place of torch.save: the disk is full at the checkpoint of step 9."""
    if state["step"] == 9:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    REAL_SAVE(state, path)
