"""Sweeps that outlive their shell: frozen code, the batch script, and what status says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import HydraException

from cwd.cli import explain
from cwd.config import identity_of
from cwd.evidence.study import Study
from cwd.runs import MetricsLog, Record
from cwd.sweeping.frozen import PARTS, UNUSED, environment, freeze
from cwd.sweeping.slurm import KILLS, batch_setup, queue
from cwd.sweeping.standing import Watch, lines_of, runs_of
from cwd.sweeping.submissions import Submission, current_queue, live_submissions
from cwd.sweeping.sweep import Sweep
from cwd.sweeps import compose_config, write_cells
from cwd.training.signals import Interrupts
from hydra_plugins.cwd_slurm import _error_of
from tests.conftest import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with the parts that are frozen."""
    root = tmp_path / "checkout"
    for part in PARTS:
        if part.endswith(".py"):
            (root / part).write_text("import cwd\nprint(cwd.WHO)\n")
        else:
            (root / part / "__pycache__").mkdir(parents=True)
            (root / part / "__init__.py").write_text("WHO = 'frozen'\n")
            (root / part / "__pycache__" / "old.pyc").write_bytes(b"0")
    return root


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a squeue in the path that prints what it is given, and a scontrol that notes its arguments."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def install(listing: str) -> Path:
        (tools / "squeue").write_text(f"#!/bin/sh\nprintf '%s\\n' '{listing}'\n")
        (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tools / 'asked'}\n")
        for name in ("squeue", "scontrol"):
            (tools / name).chmod(0o755)
        current_queue.cache_clear()
        return tools / "asked"

    yield install
    current_queue.cache_clear()


# --- frozen code ----------------------------------------------------------------------------------------------------


def test_a_frozen_copy_is_named_by_its_content_and_made_once(checkout, tmp_path):
    first = freeze(tmp_path / "runs", checkout)
    made = (first / "train.py").stat().st_mtime_ns
    assert freeze(tmp_path / "runs", checkout) == first
    assert (first / "train.py").stat().st_mtime_ns == made
    assert freeze(tmp_path / "runs", first) == first
    assert not list(first.rglob("*.pyc"))
    (checkout / "configs" / "__init__.py").write_text("WHO = 'edited'\n")
    second = freeze(tmp_path / "runs", checkout)
    assert second != first
    assert (first / "configs" / "__init__.py").read_text() == "WHO = 'frozen'\n"


def test_a_process_imports_the_copy_wherever_it_is_started(checkout, tmp_path):
    copy = freeze(tmp_path / "runs", checkout)
    (checkout / "cwd" / "__init__.py").write_text("WHO = 'edited'\n")
    variables = {**os.environ, **environment(copy)}
    for command in (["-c", "import cwd; print(cwd.WHO)"], ["-m", "train"], [str(copy / "train.py")]):
        done = subprocess.run(
            [sys.executable, *command], cwd=checkout, env=variables, capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.stderr) == ("frozen\n", ""), command


def test_a_copy_says_which_commit_it_is(checkout, tmp_path):
    from cwd.commit import commit_of

    assert commit_of(freeze(tmp_path / "a", checkout)) is None
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout.strip()
    assert commit_of(freeze(tmp_path / "b", checkout)) == head
    (checkout / "train.py").write_text("pass\n")
    assert commit_of(freeze(tmp_path / "b", checkout)) == f"{head}+changes"


def test_old_copies_go_unless_queued_jobs_need_them(checkout, tmp_path, slurm):
    runs = tmp_path / "runs"
    needed, idle = freeze(runs, checkout), runs / ".code" / "0123456789abcdef"
    shutil.copytree(needed, idle)
    for path in (needed, idle):
        os.utime(path, (time.time() - UNUSED - 1,) * 2)
    slurm("7_0 PENDING")
    Submission("slurm", str(needed), "%j.log", {"7_0": "run_a", "7_1": "run_b"}).write(runs)
    (checkout / "train.py").write_text("pass\n")
    freeze(runs, checkout)
    assert needed.is_dir()
    assert not idle.exists()


# --- SLURM ----------------------------------------------------------------------------------------------------------


def test_the_queue_is_read_job_by_job(slurm):
    slurm("12_0 RUNNING\n12_1 PENDING\n13 COMPLETING")
    assert queue() == {"12_0": "RUNNING", "12_1": "PENDING", "13": "COMPLETING"}


def test_without_squeue_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue() is None


@pytest.mark.parametrize(
    ("ends", "state", "restarts", "requeued"),
    [
        ("kill -TERM $$", "RUNNING", 0, True),  # saved after a signal that nobody else will follow up
        ("kill -KILL $$", "RUNNING", 0, True),
        ("kill -KILL $$", "RUNNING", KILLS, False),  # killed again and again: no use
        ("kill -USR1 $$", "RUNNING", KILLS, True),
        ("kill -TERM $$", "COMPLETING", 0, False),  # SLURM ends it: scancel, requeue
        ("exit 1", "RUNNING", 0, False),  # failed
        ("exit 0", "RUNNING", 0, False),
    ],
)
def test_the_batch_script_requeues_what_a_signal_ended(ends, state, restarts, requeued, slurm, tmp_path):
    asked = slurm(state)
    script = tmp_path / "script.sh"
    script.write_text("\n".join([*batch_setup(tmp_path / "a code"), f"sh -c '{ends}'", ""]))
    variables = {**os.environ, "SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": str(restarts)}
    subprocess.run(["bash", str(script)], env=variables, timeout=60, capture_output=True)
    assert (asked.read_text() if asked.exists() else "") == ("requeue 41\n" if requeued else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_run_notes_the_signals_of_schedulers(number):
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), number)
        assert interrupts.signal == number
    assert signal.getsignal(number) == before


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    words = ["-m", "hydra/launcher=slurm", "scale=smoke", "seed=0,1", f"machine.runs={tmp_path / 'runs'}"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "squeue is not here" in done.stderr


def test_gpus_that_no_process_would_use_are_one_line(tmp_path):
    words = ["-m", "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=8", f"machine.runs={tmp_path / 'runs'}"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "gpus_per_node=8: a process uses one GPU, and there would be 1 on each node" in done.stderr
    assert not (tmp_path / "runs" / ".sweeps").exists()


def test_a_job_that_failed_is_told_of_with_its_reason(tmp_path):
    submitit = pytest.importorskip("submitit")
    from submitit.core.utils import cloudpickle_dump

    job = submitit.SlurmJob(tmp_path, "41")
    assert "cancelled or killed" in str(_error_of(job))
    trace = "Traceback (most recent call last):\n  ...\nValueError: no"
    cloudpickle_dump(("error", trace), job.paths.result_pickle)
    assert str(_error_of(job)) == f"job 41: its log is {job.paths.stderr}; ValueError: no"


def test_a_setting_that_the_launcher_lacks_is_one_line():
    with pytest.raises(HydraException) as caught:
        compose_config(["hydra/launcher=slurm", "hydra.launcher.partitionn=x"])
    assert explain(caught.value).startswith("hydra.launcher.partitionn: no such setting")


# --- how far the runs are -------------------------------------------------------------------------------------------


@pytest.fixture
def six(tmp_path, fast_disk):
    """The demo's six runs at smoke scale, in every state that a run can be in."""
    runs = tmp_path / "runs"
    runs.mkdir()
    configs = [config for config, *_ in runs_of([Study("smoke", runs, 1).state("demo")])]
    assert len(configs) == 6

    def record(config) -> Record:
        return Record.create(runs, identity_of(config), {"fingerprint": "a"}, config)

    done, failed, running, queued, stopped, _ = configs
    record(done).finish({"loss": 3.0, "steps": 20, "seconds": 8.0, "pairing": {}}, 20)
    record(done).add_environment({"device": "cpu", "processes": 1})
    record(failed).set_status("failed", 7, message="ValueError: no", traceback="Traceback ...\nValueError: no")
    record(running).set_status("running", 0, steps=20)
    log = MetricsLog(record(running).metrics_file)
    log.write("train", 5, loss=4.0, seconds=10.0)
    log.close()
    names = write_cells([queued, stopped], runs.absolute() / ".cells")
    Submission("slurm", "code", "/logs/%j.err", {"9_0": names[0], "9_1": names[1]}).write(runs)
    with record(running).lock():
        yield runs


def test_status_says_what_each_run_is_doing(six, slurm):
    slurm("9_0 PENDING")
    found = Watch([Study("smoke", six, 1).state("demo")], six).now()
    assert [one.state for one in found] == ["done", "failed", "running", "queued", "stopped", "to do"]
    assert (found[2].step, found[2].left) == (5, 30.0)  # 10 s for 5 of 20 steps
    text = "\n".join(lines_of(found))
    assert text.startswith("6 runs: 1 done, 1 running, 1 queued, 1 stopped, 1 failed, 1 to do\n")
    for words in ("step 7 of 20  ValueError: no", "job 9_0 PENDING", "job 9_1 has ended", "/logs/9_1.err", "time left"):
        assert words in text


def test_what_failed_runs_again_only_when_asked(six, slurm):
    slurm("9_0 PENDING")
    states = [Study("smoke", six, 1).state("demo")]
    place = six, six.parent / "data"
    usual = Sweep("smoke", "basic", *place).wanted(states)
    again = Sweep("smoke", "basic", *place, retry=True).wanted(states)
    failed = write_cells([runs_of(states)[1][0]], six / ".cells")
    assert (len(usual), len(again)) == (4, 5)
    assert set(again) - set(usual) == set(failed)


def test_a_session_is_alive_as_long_as_its_process(tmp_path):
    script = tmp_path / "artifact.py"
    script.write_text("import time; time.sleep(60)")
    process = subprocess.Popen([sys.executable, str(script)])
    try:
        Submission("session", "code", "log", artifacts=["demo"], pid=process.pid).write(tmp_path)
        assert [one.pid for one in live_submissions(tmp_path)] == [process.pid]
    finally:
        process.kill()
        process.wait()
    assert live_submissions(tmp_path) == []
