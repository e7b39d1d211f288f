"""The command behind ``make table10``: it runs what is missing, once, whatever happened before, and renders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

COMMAND = [sys.executable, str(ROOT / "scripts" / "artifact.py")]


def arguments(folder: Path, *more: str) -> list[str]:
    where = [f"--{name}={folder / name}" for name in ("runs", "data", "out")]
    return [*COMMAND, "demo", "--scale=smoke", "--seeds=2", *where, *more]


def call(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = arguments(folder, *more)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def finished(folder: Path) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime for path in (folder / "runs").glob("*/summary.json")}


def test_a_plan_says_what_would_be_run_and_runs_nothing(tmp_path: Path) -> None:
    done = call(tmp_path, "--plan")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("12 runs to do, about ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_after_kill_9_the_same_command_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = arguments(tmp_path, "--launcher=basic")
    with open(tmp_path / "log", "w") as log:
        first = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
        while len(finished(tmp_path)) < 3 and first.poll() is None:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    before = finished(tmp_path)
    assert 3 <= len(before) < 12
    second = call(tmp_path, "--launcher=basic")
    assert second.returncode == 0, second.stderr
    after = finished(tmp_path)
    assert len(after) == 12
    assert {key: after[key] for key in before} == before
    assert f"{12 - len(before)} runs to do" in second.stdout
    assert "INCOMPLETE" not in second.stdout
    assert "SMOKE, NO EVIDENCE" in second.stdout
    third = call(tmp_path, "--launcher=basic")
    assert "runs to do" not in third.stdout
    assert finished(tmp_path) == after
    assert {path.suffix for path in (tmp_path / "out" / "smoke").iterdir()} == {".md", ".tex", ".json"}


def test_the_papers_scale_needs_gpus_or_a_cluster(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = [*COMMAND, "table7", "--scale=paper", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "SCALE=paper: needs GPUs" in done.stderr
