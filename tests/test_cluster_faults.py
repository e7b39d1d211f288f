"""Sweeps that are left, broken and asked about, with real processes, a real SLURM and a real Ray."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwd.faults.cluster import ask, one_node, why_not
from cwd.faults.ray import why_no_ray
from cwd.runs import all_records
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
WAIT = 600  # seconds: the machine may be busy


def artifact(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """scripts/artifact.py on the demo's six runs at smoke scale."""
    places = [f"--{name}={folder / name}" for name in ("runs", "data", "out")]
    command = [sys.executable, str(ROOT / "scripts" / "artifact.py"), "demo", "--scale=smoke", "--seeds=1", *places]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=WAIT)


def starts(folder: Path) -> dict[str, int]:
    """How often each run was started."""
    files = (folder / "runs").glob("*/environment.jsonl")
    return {path.parent.name: len(path.read_text().splitlines()) for path in files}


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    if reason := why_not():
        pytest.skip(reason)
    with one_node() as found:
        yield found


@pytest.mark.timeout(2 * WAIT)
def test_a_run_that_fails_says_why_and_runs_again_when_asked(tmp_path):
    assert artifact(tmp_path, "--launcher=basic").returncode == 0
    victim = all_records(tmp_path / "runs")[2].folder
    shutil.rmtree(victim)
    (victim / "metrics.jsonl").mkdir(parents=True)  # which no run can write to
    broken = artifact(tmp_path, "--launcher=basic")
    assert broken.returncode == 1
    assert broken.stderr.count("failed: ") == 1
    [record] = [one for one in all_records(tmp_path / "runs") if one.folder == victim]
    status = record.status
    assert (status["state"], status["message"].split(":")[0]) == ("failed", "IsADirectoryError")
    assert "Traceback" in status["traceback"]
    assert "trainer.py" in status["traceback"]
    before = starts(tmp_path)
    passed_over = artifact(tmp_path, "--launcher=basic")
    assert passed_over.returncode == 1
    assert starts(tmp_path) == before
    assert "6 runs: 5 done, 1 failed" in artifact(tmp_path, "--status").stdout
    (victim / "metrics.jsonl").rmdir()
    assert artifact(tmp_path, "--launcher=basic", "--retry").returncode == 0
    assert "6 runs: 6 done" in artifact(tmp_path, "--status").stdout
    assert {key: count for key, count in starts(tmp_path).items() if key != victim.name} == {
        key: count for key, count in before.items() if key != victim.name
    }


@pytest.mark.timeout(2 * WAIT)
def test_a_detached_sweep_goes_on_alone_and_any_shell_can_ask(tmp_path):
    began = time.monotonic()
    left = artifact(tmp_path, "--launcher=local", "--detach")
    assert left.returncode == 0, left.stderr
    pid = int(re.findall(r"process (\d+) works on it", left.stdout)[0])
    try:
        assert not (tmp_path / "out").exists()
        assert f"process {pid}" in artifact(tmp_path, "--launcher=local", "--detach").stdout  # no second one
        while (text := artifact(tmp_path, "--status").stdout) and "session: " in text:
            assert time.monotonic() - began < WAIT, text
            time.sleep(1)
    finally:
        if Path(f"/proc/{pid}").exists() and b"artifact.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
    assert "6 runs: 6 done" in text
    assert (tmp_path / "out" / "smoke").is_dir()  # it renders too
    before = starts(tmp_path)
    assert artifact(tmp_path).returncode == 0
    assert starts(tmp_path) == before


@pytest.mark.timeout(2 * WAIT)
def test_runs_left_to_slurm_are_waited_for_not_submitted_twice(tmp_path, cluster):
    job = ["--launcher=slurm", "--job", "gpus_per_node=null", "cpus_per_task=1", "partition=main"]
    left = artifact(tmp_path, *job, "--detach", **cluster)
    assert left.returncode == 0, left.stderr
    assert "6 runs submitted" in left.stdout
    queued = artifact(tmp_path, "--status", **cluster).stdout
    assert "6 runs: " in queued
    assert "PENDING" in queued
    again = artifact(tmp_path, *job, **cluster)
    assert again.returncode == 0, again.stderr
    assert "of them are in the queue already" in again.stdout
    assert "runs submitted" not in again.stdout
    assert set(starts(tmp_path).values()) == {1}
    assert "6 runs: 6 done" in artifact(tmp_path, "--status", **cluster).stdout
    assert ask(["squeue", "-h"], cluster) == ""


@pytest.mark.timeout(4 * WAIT)
@pytest.mark.skipif(bool(why_not()), reason=str(why_not()))
def test_every_fault_on_slurm_ends_with_the_bits_of_a_sweep_left_alone():
    faults("preemption", "requeue", "scancel", "driver", "job", "usr1", "edit", "limit")


@pytest.mark.timeout(2 * WAIT)
@pytest.mark.skipif(bool(why_no_ray()), reason=str(why_no_ray()))
def test_a_ray_worker_that_is_killed_is_started_again():
    faults("ray")


def faults(*names: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "faults.py"), *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=4 * WAIT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT AS UNDISTURBED" not in done.stdout
