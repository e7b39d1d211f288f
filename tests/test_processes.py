"""Processes that agree before they train, and do not wait for one that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cwd.errors import UserError
from cwd.runs import Record, all_records
from cwd.schema import Machine
from cwd.training import processes
from cwd.training.processes import Processes, join
from tests.conftest import ROOT
from tests.parallel_helpers import case, launch, wait
from tests.training_helpers import smoke_config, train

LAUNCHER = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE", "ACCELERATE_USE_CPU")
LONG = "training.steps=2000"  # which no test waits for


@pytest.fixture
def bare(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# --- how many there are -------------------------------------------------------------------------------------------


def test_one_process_is_alone_and_does_not_load_torch(bare):
    assert type(join(Machine())) is Processes
    assert type(join(Machine(processes=1))) is Processes
    found = "from cwd.schema import Machine; from cwd.training.processes import join; join(Machine())"
    code = f"import sys; {found}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_a_launcher_that_announces_several_but_does_not_say_who_is_who_is_an_error(name, bare):
    bare.setenv(name, "2")
    with pytest.raises(UserError, match=r"2 processes were asked for, .* torchrun --nproc-per-node 2"):
        join(Machine())


def test_fewer_processes_than_must_take_part_is_an_error(tmp_path, bare):
    with pytest.raises(UserError, match=r"machine\.processes=4: the launcher started 1"):
        train(tmp_path, "machine.processes=4")
    assert not (tmp_path / "runs").exists()


def test_accelerate_launch_on_the_cpu_starts_one_process_whatever_it_is_asked_and_that_is_an_error(tmp_path, bare):
    place = [f"machine.runs={tmp_path}/runs", f"machine.data={tmp_path}/data"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [*launcher, str(ROOT / "train.py"), "scale=smoke", "tracker=none", *place]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "train.py: 2 processes were asked for, but this one was told nothing of the others" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_dividing_a_model_over_one_process_is_an_error(tmp_path, bare):
    with pytest.raises(UserError, match=r"machine\.sharding=full: there is one process"):
        train(tmp_path, "machine.sharding=full")
    assert not (tmp_path / "runs").exists()


# --- what they agree on -------------------------------------------------------------------------------------------


def errors(out: str) -> list[str]:
    """What a process printed, without the warnings of torch's sockets."""
    return [
        line
        for line in out.splitlines()
        if line and not line.startswith(("[W", "frame #", "Exception raised", "<omitting"))
    ]


def test_processes_with_other_configurations_end_with_one_line_that_says_what_differs(tmp_path):
    ended = wait(tmp_path, launch(tmp_path, 2, [case("", LONG)], [case("", LONG, "optimizer.lr=0.5")]))
    assert [one.status for one in ended] == [2, processes.LOST]
    [line] = errors(ended[0].out)
    assert "optimizer.lr: 0.5 in process 1" in line
    assert "0.01 in process 0" in line
    assert errors(ended[1].out) == []
    assert not (tmp_path / "runs").exists()


def test_a_run_that_another_process_holds_ends_all_processes_with_one_line(tmp_path):
    record = record_of(tmp_path)
    with record.lock():
        ended = wait(tmp_path, launch(tmp_path, 2, [case("", LONG)]))
    assert [one.status for one in ended] == [2, processes.LOST]
    [line] = errors(ended[0].out)
    assert f"run {record.key}: process {os.getpid()}" in line
    assert errors(ended[1].out) == []


def record_of(folder: Path) -> Record:
    """The record of the run that the processes are to train, as they would make it."""
    from cwd.config import identity
    from cwd.training.sources import load_tokens

    config = smoke_config(folder, LONG, "machine.device=cpu")
    data = load_tokens(config, print)
    return Record.create(folder / "runs", identity(config), {"fingerprint": data.fingerprint}, {})


# --- when one is gone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "rank"), [("die", 1), ("die", 0), ("freeze", 1), ("freeze", 0)])
def test_a_process_that_is_gone_ends_the_others_with_its_name(how, rank, tmp_path):
    """Killed, or stopped so that nothing but its silence tells. With the real patience it takes 20 seconds more."""
    started = launch(tmp_path, 2, [case("", LONG, silence=4, **{how: [rank, 5]})])
    survivor = started[1 - rank]
    survivor.wait(timeout=200)
    started[rank].send_signal(signal.SIGKILL)  # a stopped process does not end by itself
    ended = wait(tmp_path, started)
    assert ended[1 - rank].status == processes.LOST
    out = ended[1 - rank].out
    if rank == 0:  # which held the store, so that its silence cannot be told from its end
        assert "process 0 is gone" in out
        return
    assert f"process 1 ({os.uname().nodename}, pid {started[1].pid}) has not been heard of" in out
    [record] = all_records(tmp_path / "runs")
    assert record.status["state"] == "failed"
    assert f"pid {started[1].pid}" in record.status["message"]
