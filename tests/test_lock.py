"""The lock of a run where flock does not reach other machines: seen by its heartbeat, taken over once, never shared.

Another machine is played: a process that gives itself another machine's name, and whose flock is always granted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwd import lock
from cwd.errors import UserError
from cwd.lock import Busy, Lost
from cwd.runs import Record
from tests.conftest import ROOT

START = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from cwd import lock
from cwd.lock import Lost
from cwd.runs import Record
lock.BEAT, lock.SILENCE = {beat}, {silence}
if {elsewhere}:
    lock._machine = lambda: "another"
    lock._flock = lambda file, kind: True
record = Record(Path({folder!r}))
"""
HOLD = """
with record.lock():
    record.set_status("running", 7)
    print("held", flush=True)
    sys.stdin.readline()
    try:
        record.set_status("running", 8)
    except Lost as error:
        print(error, flush=True)
"""
Starts = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(tmp_path: Path) -> Record:
    return Record.create(tmp_path / "runs", {"seed": 0}, {"fingerprint": "a"}, {})


@pytest.fixture
def start(run: Record) -> Iterator[Starts]:
    """Starts a process with a lock of its own; none is left behind."""
    started = []

    def of(code: str, elsewhere: bool = True, beat: float = 0.1, silence: float = 1.0) -> subprocess.Popen[str]:
        about = {"root": str(ROOT), "folder": str(run.folder), "elsewhere": elsewhere, "beat": beat}
        text = START.format(**about, silence=silence) + code
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", text], text=True, **pipes))  # type: ignore[call-overload]
        return started[-1]

    yield of
    for process in started:
        process.kill()
        process.communicate()


def holder(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose locks do not reach the others."""
    monkeypatch.setattr(lock, "_flock", lambda file, kind: True)


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_live_owner_is_seen_without_flock(machine: str, run: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.lock():
        if machine == "another":
            monkeypatch.setattr(lock, "_machine", lambda: "another")
        assert Record(run.folder).is_locked()
        who = rf"process {os.getpid()} on {os.uname().nodename}"
        heard = r" \(last heard of 0 s ago, dead after 120 s\)" if machine == "another" else ""
        with pytest.raises(Busy, match=rf"^run {run.key}: {who}{heard} is working on it"), run.lock(0.1):
            pass
        monkeypatch.undo()
    assert not run.is_locked()


@pytest.mark.usefixtures("no_flock")
def test_a_beating_owner_is_never_taken_over_whatever_the_clocks_say(
    run: Record, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE", 3.0)
    holder(start(HOLD))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)  # this machine's clock is an hour ahead
    with pytest.raises(Busy, match="last heard of"), run.lock(4.0):
        pass
    assert run.status["state"] == "running"


def test_a_dead_process_of_this_machine_is_taken_over_at_once(
    run: Record, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder(start(HOLD, elsewhere=False, silence=120.0))
    monkeypatch.setattr(lock, "_flock", lambda file, kind: True)
    assert run.is_locked()
    process.kill()  # not waited for: what is left of it has a number still
    began = time.monotonic()
    with run.lock(20.0):
        assert time.monotonic() - began < 20
    assert run.status["state"] == "interrupted"


def test_another_process_with_the_number_of_a_dead_owner_is_not_the_owner(
    run: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_flock", lambda file, kind: True)
    with run.lock():
        assert run.is_locked()
        monkeypatch.setattr(lock, "_started", lambda pid: "later")
        assert not run.is_locked()
        monkeypatch.undo()


@pytest.mark.usefixtures("no_flock")
def test_a_dead_owner_elsewhere_is_taken_over_after_its_silence(
    run: Record, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    process = holder(start(HOLD, silence=2.0))
    process.kill()
    process.wait()
    assert run.status["state"] == "running"  # as nobody can know better yet
    with pytest.raises(Busy, match=r"last heard of . s ago, dead after 2 s"), run.lock(0):
        pass
    with run.lock(60.0):
        assert run.is_locked()
    assert run.status["state"] == "interrupted"


def test_an_owner_that_outlives_its_machine_in_the_servers_locks_is_taken_over(
    run: Record, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server keeps the dead machine's flock: it is refused for ever."""
    monkeypatch.setattr(lock, "SILENCE", 1.0)
    process = holder(start(HOLD))
    process.kill()
    process.wait()
    monkeypatch.setattr(lock, "_flock", lambda file, kind: kind == lock.fcntl.LOCK_UN)
    with run.lock(60.0):
        run.set_status("running", 9)


@pytest.mark.usefixtures("no_flock")
def test_an_owner_that_was_stopped_and_lost_the_run_writes_nothing_more(
    run: Record, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    process = holder(start(HOLD))
    process.send_signal(signal.SIGSTOP)
    with run.lock(60.0):
        run.set_status("running", 9)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("\n", timeout=60)
        assert out.startswith(f"run {run.key}: process {os.getpid()} on {os.uname().nodename} has taken it over")
        assert out.count("\n") == 1
        assert (run.status["state"], run.status["step"]) == ("running", 9)
        run.confirm()  # the loser's end has not let go of what is ours
    assert not run.is_locked()


def test_a_stopped_process_of_this_machine_keeps_the_run(
    run: Record, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    process = holder(start(HOLD, elsewhere=False))
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(Busy), run.lock(1.5):
        pass
    assert run.status["state"] == "running"


def test_a_folder_that_is_gone_is_said(run: Record) -> None:
    with run.lock():
        moved = run.folder.rename(run.folder.with_name("moved"))
        with pytest.raises(FileNotFoundError, match=str(run.folder)):
            run.set_status("running", 1)
        assert not (moved / "status.json").exists()


def test_a_lock_that_was_removed_is_lost(run: Record) -> None:
    with run.lock():
        for path in run.folder.glob("lock.*"):
            path.unlink()
        with pytest.raises(Lost, match="somebody has taken it over"):
            run.set_status("running", 1)
    assert run.status["state"] == "new"


def test_a_disk_without_room_for_the_lock_is_one_line(run: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*unused: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lock.json, "dump", full)
        with pytest.raises(UserError, match=r"cannot be written .No space left"), run.lock():
            pass
    assert [path.name for path in run.folder.glob("lock.*")] == []
    with run.lock():
        pass


RACE = """
import random
lock.POLLS = 0.001, 0.002
judge = lock._is_vacant
def slowly(*about):  # so that several find it vacant before one takes it
    found = judge(*about)
    time.sleep(0.005 * random.random())
    return found
lock._is_vacant = slowly
for turn in range({turns}):
    with record.lock(300.0):
        number = int(Path(record.folder / "count").read_text())
        time.sleep(0.002 * random.random())
        (record.folder / "count").write_text(str(number + 1))
        record.confirm()
        if random.random() < 0.5:  # dies: what it held stays, and was last heard of long ago
            os.utime(record._lock._own, (1, 1))
            record._lock._free = lambda: None
print("raced", flush=True)
"""


def test_of_many_takers_one_wins_every_time(run: Record, start: Starts) -> None:
    """Half of all owners die; a count that two of them raised at once would come out too low."""
    (run.folder / "count").write_text("0")
    racers = [start(RACE.format(turns=60), beat=1000.0, silence=30.0) for _ in range(4)]
    for racer in racers:
        out, _ = racer.communicate(timeout=200)
        assert out == "raced\n"
    assert (run.folder / "count").read_text() == str(4 * 60)
    assert len(list(run.folder.glob("lock.*"))) == 1
