"""Sweeps that are left, broken and asked about, with real processes, a real SLURM and a real Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cwd.faults.cluster import ask, one_node, why_not
from cwd.faults.ray import why_no_ray
from cwd.runs import all_records
from tests.conftest import ROOT
from tests.sweep_helpers import WAIT, artifact, starts

pytestmark = pytest.mark.slow
SIX = "demo"  # an artifact of six runs


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    if reason := why_not():
        pytest.skip(reason)
    with one_node() as found:
        yield found.variables


@pytest.mark.timeout(2 * WAIT)
def test_a_run_that_fails_says_why_and_runs_again_when_asked(tmp_path):
    assert artifact(SIX, tmp_path, "--launcher=basic").returncode == 0
    victim = all_records(tmp_path / "runs")[2].folder
    shutil.rmtree(victim)
    (victim / "metrics.jsonl").mkdir(parents=True)  # which no run can write to
    broken = artifact(SIX, tmp_path, "--launcher=basic")
    assert broken.returncode == 1
    assert broken.stderr.count("failed: ") == 1
    [record] = [one for one in all_records(tmp_path / "runs") if one.folder == victim]
    status = record.status
    assert (status["state"], status["message"].split(":")[0]) == ("failed", "IsADirectoryError")
    assert "Traceback" in status["traceback"]
    assert "trainer.py" in status["traceback"]
    before = starts(tmp_path)
    passed_over = artifact(SIX, tmp_path, "--launcher=basic")
    assert passed_over.returncode == 1
    assert starts(tmp_path) == before
    assert "6 runs: 5 done, 1 failed" in artifact(SIX, tmp_path, "--status").stdout
    (victim / "metrics.jsonl").rmdir()
    assert artifact(SIX, tmp_path, "--launcher=basic", "--retry").returncode == 0
    assert "6 runs: 6 done" in artifact(SIX, tmp_path, "--status").stdout
    assert {key: count for key, count in starts(tmp_path).items() if key != victim.name} == {
        key: count for key, count in before.items() if key != victim.name
    }


@pytest.mark.timeout(2 * WAIT)
def test_runs_left_to_slurm_are_waited_for_not_submitted_twice(tmp_path, cluster):
    job = ["--launcher=slurm", "--job", "gpus_per_node=null", "cpus_per_task=1", "partition=main"]
    left = artifact(SIX, tmp_path, *job, "--detach", **cluster)
    assert left.returncode == 0, left.stderr
    assert "6 runs submitted" in left.stdout
    queued = artifact(SIX, tmp_path, "--status", **cluster).stdout
    assert "6 runs: " in queued
    assert "PENDING" in queued
    again = artifact(SIX, tmp_path, *job, **cluster)
    assert again.returncode == 0, again.stderr
    assert "of them are in the queue already" in again.stdout
    assert "runs submitted" not in again.stdout
    assert set(starts(tmp_path).values()) == {1}
    assert "6 runs: 6 done" in artifact(SIX, tmp_path, "--status", **cluster).stdout
    assert ask(["squeue", "-h"], cluster) == ""


@pytest.mark.timeout(4 * WAIT)
@pytest.mark.skipif(bool(why_not()), reason=str(why_not()))
def test_every_fault_on_slurm_ends_with_the_bits_of_a_sweep_left_alone():
    faults("preemption", "requeue", "scancel", "driver", "job", "node", "usr1", "edit", "limit", "processes")


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
