"""Run records: the key, the folder, the lock, the status, the metrics, and what of them survives damage and kills."""

from __future__ import annotations

import builtins
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cwd.errors import UserError
from cwd.evidence.listing import print_run, print_runs, select
from cwd.files import read_json, write_json
from cwd.lock import Busy
from cwd.runs import MetricsLog, Record, all_records, read_metrics, record, run_key
from tests.conftest import ROOT, changed, identity_of

IDENTITY = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.95]}, "seed": 0, "note": None}


def new(root: Path, **values: Any) -> Record:
    identity = {**IDENTITY, **values}
    return Record.create(root, identity, {"fingerprint": "a"}, {**identity, "machine": {"runs": str(root)}})


# Key


def test_key_is_of_the_content_and_not_of_its_order() -> None:
    turned = dict(reversed([(k, dict(reversed(v.items())) if isinstance(v, dict) else v) for k, v in IDENTITY.items()]))
    assert list(turned) != list(IDENTITY)
    assert run_key(turned, "a") == run_key(IDENTITY, "a")
    assert len(run_key(IDENTITY, "a")) == 16


def test_key_changes_with_any_value_the_data_and_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, Any]] = [
        {"optimizer.lr": 0.2},
        {"optimizer.betas": [0.95, 0.9]},
        {"optimizer.betas": [0.9]},
        {"seed": 1},
        {"seed": None},
        {"note": 0},
        {"note": "null"},
        {"new": None},
    ]
    keys = {run_key(IDENTITY, "a"), run_key(IDENTITY, "b"), *(run_key(changed(IDENTITY, one), "a") for one in changes)}
    monkeypatch.setattr(record, "FORMAT", record.FORMAT + 1)
    keys.add(run_key(IDENTITY, "a"))
    assert len(keys) == len(changes) + 3


def test_key_takes_no_nan() -> None:
    with pytest.raises(ValueError):
        run_key({"lr": math.nan}, "a")


# Folder


def test_creating_a_record_twice_gives_the_same_folder_and_changes_nothing(tmp_path: Path) -> None:
    first = new(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert new(tmp_path).folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    assert [found.key for found in all_records(tmp_path)] == [first.key]
    assert first.config["machine"] == {"runs": str(tmp_path)}


def test_a_runs_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^machine\.runs=.*file.*cannot be written") as caught:
        new(tmp_path / "file" / "runs")
    assert "\n" not in str(caught.value)


def test_a_lock_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    run = new(tmp_path)
    (run.folder / "lock").mkdir()
    with pytest.raises(UserError, match=rf"^run {run.key}: .*cannot be written"), run.lock():
        pass


def test_no_runs_folder_means_no_runs(tmp_path: Path) -> None:
    assert all_records(tmp_path / "none") == []


# Metrics


def test_metrics_come_back_in_order_and_by_kind(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    log.write("eval", 0, loss=3.0)
    log.write("train", 10, loss=2.5)
    log.write("eval", 10, loss=2.0)
    log.close()
    assert [(line["kind"], line["step"]) for line in read_metrics(tmp_path / "m")] == [
        ("eval", 0),
        ("train", 10),
        ("eval", 10),
    ]
    assert [line["loss"] for line in read_metrics(tmp_path / "m", "eval")] == [3.0, 2.0]
    assert read_metrics(tmp_path / "none") == []


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m")
    values = {"a": math.nan, "b": [1.0, math.inf, [-math.inf]], "c": {"d": (math.nan, 2)}, "e": 1.5}
    log.write("train", 1, **values)
    log.close()
    (line,) = read_metrics(tmp_path / "m")
    assert line == {"kind": "train", "step": 1, "a": None, "b": [1.0, None, [None]], "c": {"d": [None, 2]}, "e": 1.5}


def test_a_line_is_one_write(tmp_path: Path) -> None:
    """So that two lines never mix, and a kill tears at most the last."""
    log = MetricsLog(tmp_path / "m")
    log.write("train", 1, loss=1.0)
    descriptor = os.open(tmp_path / "m", os.O_RDONLY)
    assert os.read(descriptor, 1 << 20).endswith(b"}\n")  # with the system before close
    log.write("train", 2, long="x" * 100_000)
    assert os.read(descriptor, 1 << 20).count(b"\n") == 1
    os.close(descriptor)
    log.close()


@pytest.mark.parametrize(
    "torn", [b'{"kind": "train", "st', b"\x00\x00\x00", b"\xff\xfe", b"3", b"[1]", b"{}", b"", b"nonsense"]
)
def test_a_torn_line_is_passed_over_wherever_it_stands(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "m"
    log = MetricsLog(path)
    log.write("train", 1)
    log.close()
    with open(path, "ab") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(path)] == [1]
    log = MetricsLog(path)
    log.write("train", 2)
    log.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


class Killed(Exception):
    """In the place of kill -9."""


def session(path: Path, saved: int, steps: int, save_every: int, writes: int, tear: float) -> int:
    """A start of a run, as the trainer writes it, from the checkpoint of step `saved`; returns that of the last one.

    It is killed in the middle of a line, after `writes` whole ones.
    """

    def guard(kind: str, step: int, **values: Any) -> None:
        nonlocal writes
        if writes == 0:
            log.close()
            line = json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n"
            with open(path, "ab") as file:
                file.write(line[: int(tear * len(line))])
            raise Killed
        writes -= 1
        log.write(kind, step, **values)

    log = MetricsLog(path)
    try:
        if path.stat().st_size > 0:
            guard("resume", saved if saved > 0 else -1)
        if saved == 0:
            guard("eval", 0, loss=0.0)
        for step in range(saved + 1, steps + 1):
            guard("train", step, loss=step / 7)
            if step % 3 == 0:
                guard("eval", step, loss=step / 9)
            if step % save_every == 0:
                saved = step
    except Killed:
        return saved
    log.close()
    return steps


@settings(max_examples=200, deadline=None)
@given(
    kills=st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1)), max_size=6),
    save_every=st.integers(1, 12),
)
def test_killed_and_resumed_metrics_are_those_of_an_undisturbed_run(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, float]], save_every: int
) -> None:
    folder, steps = tmp_path_factory.mktemp("metrics"), 12
    session(folder / "whole", 0, steps, save_every, 1000, 0)
    saved = 0
    for writes, tear in [*kills, (1000, 0)]:
        if saved < steps:
            saved = session(folder / "killed", saved, steps, save_every, writes, tear)
    assert saved == steps
    assert read_metrics(folder / "killed") == read_metrics(folder / "whole")


# Status and lock

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cwd.runs import Record
record = Record(Path(sys.argv[2]))
with record.lock():
    record.set_status("running", 7)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Record, subprocess.Popen[str]]]:
    """A run that another process works on."""
    run = new(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(ROOT), str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield run, process
        process.kill()


def test_a_run_reads_running_while_its_process_lives_and_interrupted_after_kill_9(
    held: tuple[Record, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, process = held
    assert run.status["state"] == "running"
    assert run.status["step"] == 7
    monkeypatch.setattr(record, "PATIENCE", 0.1)
    who = f"process {process.pid} on {os.uname().nodename}"
    with pytest.raises(Busy, match=f"^run {run.key}: {who} is working on it"), run.lock():
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run.status["state"] == "interrupted"
    assert run.status["step"] == 7
    with run.lock():
        assert run.is_locked()


def test_the_lock_is_exclusive_within_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PATIENCE", 0.05)
    run = new(tmp_path)
    with run.lock():
        assert run.is_locked()
        with pytest.raises(Busy, match=f"process {os.getpid()} on "), Record(run.folder).lock():
            pass
        assert run.is_locked()
    assert not run.is_locked()
    with run.lock():
        pass


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    run = new(tmp_path)
    with pytest.raises(ZeroDivisionError), run.lock():
        _ = 1 / 0
    assert not run.is_locked()


def test_a_reader_does_not_make_a_starter_fail(tmp_path: Path) -> None:
    run = new(tmp_path)
    with run.lock():
        pass  # now there is a lock file to look at
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            Record(run.folder).is_locked()

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(20):
            with run.lock():
                pass
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def test_a_starter_waits_for_a_lock_that_is_soon_free(tmp_path: Path) -> None:
    run = new(tmp_path)
    free = threading.Event()

    def hold() -> None:
        with run.lock():
            free.set()
            time.sleep(0.2)

    holder = threading.Thread(target=hold)
    holder.start()
    free.wait()
    with Record(run.folder).lock():
        holder.join()


def test_looking_at_a_run_writes_nothing(tmp_path: Path) -> None:
    run = new(tmp_path)
    before = sorted(run.folder.iterdir())
    assert not run.is_locked()
    assert run.status == {"state": "new", "step": 0}
    assert run.summary is None
    assert sorted(run.folder.iterdir()) == before


def test_finish_writes_the_result_before_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def note(path: Path, value: Any) -> None:
        written.append(path.name)
        write_json(path, value)

    run = new(tmp_path)
    monkeypatch.setattr(record, "write_json", note)
    run.finish({"loss": 1.0, "steps": 5}, 5)
    assert written == ["summary.json", "status.json"]
    assert (run.status["state"], run.status["step"], run.summary) == ("done", 5, {"loss": 1.0, "steps": 5})


# Damage

GARBAGE = {
    "empty": b"",
    "torn": b'{"state": "do',
    "zeros": b"\0" * 64,
    "list": b"[1]",
    "number": b"3",
    "latin": b"\xff",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_damaged_configuration_is_listed_said_and_written_anew(tmp_path: Path, garbage: bytes) -> None:
    run = new(tmp_path)
    run.finish({"loss": 1.0, "steps": 5}, 5)
    whole = (run.folder / "config.json").read_bytes()
    (run.folder / "config.json").write_bytes(garbage)
    assert [found.key for found in select(tmp_path, [])] == [run.key]
    text = printed(lambda console: print_runs(select(tmp_path, []), console))
    assert [line for line in text.splitlines() if "config.json is damaged" in line and run.key in line]
    assert "1.0000" in text  # the result is not lost
    printed(lambda console: print_run(run, console))
    assert new(tmp_path).folder == run.folder
    assert (run.folder / "config.json").read_bytes() == whole


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_damaged_status_does_not_lose_the_result(tmp_path: Path, garbage: bytes) -> None:
    done, begun = new(tmp_path), new(tmp_path, seed=1)
    done.finish({"loss": 1.0, "steps": 5}, 5)
    begun.set_status("interrupted", 3)
    for run in (done, begun):
        (run.folder / "status.json").write_bytes(garbage)
    assert (done.status["state"], done.status["step"]) == ("done", 5)
    assert begun.status["state"] == "new"
    assert len(select(tmp_path, ["state=done"])) == 1


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_run_without_a_readable_result_is_not_done(tmp_path: Path, garbage: bytes) -> None:
    run = new(tmp_path)
    run.finish({"loss": 1.0}, 5)
    (run.folder / "summary.json").write_bytes(garbage)
    assert run.summary is None
    assert run.status["state"] == "interrupted"


def test_a_result_that_was_altered_is_none(tmp_path: Path) -> None:
    run = new(tmp_path)
    run.finish({"loss": 3.1362, "steps": 5}, 5)
    assert run.summary == {"loss": 3.1362, "steps": 5}
    path = run.folder / "summary.json"
    path.write_text(path.read_text().replace("3.1362", "0.1362"))
    assert run.summary is None
    assert run.status["state"] == "interrupted"


def test_a_configuration_that_is_not_the_keys_is_written_anew(tmp_path: Path) -> None:
    run = new(tmp_path)
    whole = (run.folder / "config.json").read_bytes()
    for wrong in (b'{"a": 1}', b'{"format": 1}', whole.replace(b'"data"', b'"date"'), b'{"identity": {}, "data": {}}'):
        (run.folder / "config.json").write_bytes(wrong)
        assert run.description == {}
        assert new(tmp_path).folder == run.folder
        assert (run.folder / "config.json").read_bytes() == whole


def test_a_kill_between_result_and_status_leaves_a_run_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new(tmp_path)
    run.set_status("running", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Record, "set_status", lambda *unused: None)
        run.finish({"loss": 1.0, "steps": 5}, 5)
    assert (run.status["state"], run.status["step"]) == ("done", 5)


def test_what_is_not_a_run_is_not_listed(tmp_path: Path) -> None:
    run = new(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert [found.key for found in all_records(tmp_path)] == [run.key]


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": math.nan})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [left.name for left in tmp_path.iterdir()] == ["a.json"]


# Many


def printed(show: Callable[[Console], None]) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show(console)
    return console.export_text()


def test_runs_that_may_not_be_written_can_be_read(
    held: tuple[Record, subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, or a copy on a read-only disk. Root may write anything, so the refusal is played."""
    run, process = held
    really_open = builtins.open

    def read_only(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if set(mode) & set("wax+"):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return really_open(file, mode, *rest, **more)

    monkeypatch.setattr(builtins, "open", read_only)
    assert [found.key for found in select(tmp_path, ["state=running"])] == [run.key]
    with pytest.raises(UserError, match="cannot be written"), run.lock():
        pass
    process.kill()
    process.wait()
    assert [found.key for found in select(tmp_path, ["state=interrupted"])] == [run.key]


def test_two_thousand_runs_are_listed_within_three_seconds(tmp_path: Path, laptop: dict[str, Any]) -> None:
    for seed in range(2000):
        config = changed(laptop, {"seed": seed})
        run = Record.create(tmp_path, identity_of(config), {"fingerprint": "a"}, config)
        run.finish({"loss": 2.5, "accuracy": 0.25, "steps": 600}, 600)
    start = time.process_time()  # not the clock: a busy machine is no fault
    text = printed(lambda console: print_runs(select(tmp_path, ["optimizer=adamw", "state=done"]), console))
    seconds = time.process_time() - start
    assert text.count("2.5000") == 2000
    assert seconds < 3
