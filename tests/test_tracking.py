"""Trackers show a run and cost it nothing: slow, broken, down or misconfigured ones; runs that go on; the one command
that syncs. About a minute.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cwd.config import identity, identity_of
from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.study import Study, all_missing
from cwd.runs import Record, all_records, read_metrics
from cwd.runs.offline import unsynced
from cwd.sweeps import compose_config, write_cells
from cwd.training import tensorboard_sink, tracker, trainer, wandb_sink
from cwd.training.tracker import Tracker
from tests.conftest import ROOT, Ended
from tests.training_helpers import in_child, outcome, train
from tests.wandb_server import KEY, Server, wandb_server

LEFT = "going on without it"


class Notes:
    """A sink that notes its calls; `slow` calls take `seconds`."""

    def __init__(self, slow: str = "", seconds: float = 0.0) -> None:
        self.slow, self.seconds = slow, seconds
        self.calls: list[Any] = []

    def open(self, after: int) -> Notes:
        self._take("open", after)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self._take("log", (step, values))

    def finish(self, summary: dict[str, Any]) -> None:
        self._take("finish", summary)

    def _take(self, what: str, value: Any) -> None:
        if what == self.slow:
            time.sleep(self.seconds)
        self.calls.append((what, value))


# --- slow, broken, down, misconfigured ---------------------------------------------------------------------------


def test_a_sink_gets_every_call_in_order_on_a_thread_of_its_own() -> None:
    notes, said, threads = Notes("log", 0.002), list[str](), set()
    real = notes._take
    notes._take = lambda what, value: (threads.add(threading.current_thread()), real(what, value))  # type: ignore
    one = Tracker(notes.open, said.append)
    one.begin(7)
    for step in range(200):
        one.log({"loss": step / 2}, step)
    one.finish({"loss": 1.0})
    logged = [("log", (step, {"loss": step / 2})) for step in range(200)]
    assert notes.calls == [("open", 7), *logged, ("finish", {"loss": 1.0})]
    assert said == []
    assert len(threads) == 1
    assert threading.current_thread() not in threads


@pytest.mark.parametrize(("slow", "backlog"), [("open", 1000), ("log", 1000), ("log", 20), ("finish", 1000)])
def test_a_slow_tracker_costs_a_bounded_time(slow: str, backlog: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call takes a minute; the bounds are made small, and a call in between must not take a hundredth of one."""
    monkeypatch.setattr(tracker, "START_WAIT", 0.2)
    monkeypatch.setattr(tracker, "FINISH_WAIT", 0.3)
    monkeypatch.setattr(tracker, "BACKLOG", backlog)
    said: list[str] = []
    one = Tracker(Notes(slow, 60).open, said.append)
    started = time.monotonic()
    one.begin(-1)
    opened = time.monotonic()
    for step in range(100):
        one.log({"loss": 1.0}, step)
    logged = time.monotonic()
    one.finish({})
    assert time.monotonic() - started < 0.2 + 0.3 + 0.5
    assert logged - opened < 0.2
    assert said == [f"tracker: {'20 calls behind' if backlog == 20 else 'not done after 0.3 s'}; {LEFT}"]


def test_the_bounds_that_the_page_states() -> None:
    page = (ROOT / "docs" / "tracking.md").read_text()
    assert f"{tracker.START_WAIT:g} s" in page
    assert f"{tracker.FINISH_WAIT:g} s" in page
    assert wandb_sink.UPLOAD_TIMEOUT < tracker.FINISH_WAIT


def with_wandb(folder: Path, environment: dict[str, str], *overrides: str) -> Callable[[], None]:
    """Trains a run with wandb as a process of its own would, where the environment is this."""

    def action() -> None:
        for name in list(os.environ):
            if name.startswith("WANDB_"):
                del os.environ[name]
        home = {"HOME": str(folder), "NETRC": str(folder / "netrc")}  # nobody is logged in
        os.environ.update({**home, **environment})
        train(folder, "tracker=wandb", "machine.log_every=1", *overrides)

    return action


@pytest.mark.parametrize("trouble", ["bad key", "no server", "silent server", "bad project", "no folder"])
def test_a_tracker_that_is_down_or_misconfigured_is_one_line(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_sink, "START_TIMEOUT", 1)
    expected = train(tmp_path / "none", "machine.log_every=1")
    capfd.readouterr()
    silent = socket.create_server(("127.0.0.1", 0))
    environment, overrides = {"WANDB_MODE": "offline"}, []
    if trouble == "bad key":
        environment = {"WANDB_API_KEY": "my-secret"}
    elif trouble.endswith("server"):
        port = silent.getsockname()[1] if trouble == "silent server" else 9
        environment = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    elif trouble == "bad project":
        overrides = ["tracker.project='a/b#c'"]
    else:
        (tmp_path / "runs" / expected.record.key).mkdir(parents=True)
        (tmp_path / "runs" / expected.record.key / "wandb").write_text("a file")
    assert in_child(with_wandb(tmp_path, environment, *overrides)) == 0
    silent.close()
    lines = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("done")]
    assert len(lines) == 1
    assert lines[0].startswith("tracker: ")
    assert lines[0].endswith(LEFT if trouble in ("no folder", "bad project") else "python scripts/runs.py sync")
    assert environment.get("WANDB_API_KEY", KEY + "1") not in lines[0]
    record = Record(tmp_path / "runs" / expected.record.key)
    assert outcome(record) == outcome(expected.record)
    assert len(unsynced(record)) == (trouble not in ("no folder", "bad project"))


def test_a_tracker_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(tmp_path, "tracker=tensorboard").state == "done"
    assert capsys.readouterr().out.count(LEFT) == 1


# --- runs that go on ---------------------------------------------------------------------------------------------


def settle(one: Any) -> None:
    """Waits until what the tracker was given is on disk: its queue is empty, and its files have not grown for 3 s."""
    quiet, size, end = time.monotonic(), -1, time.monotonic() + 90
    while time.monotonic() < end and time.monotonic() - quiet < 3:
        now = sum(path.stat().st_size for path in one.record.folder.glob("wandb/offline*/*.wandb"))
        if now != size or not one.tracker._calls.empty():
            quiet, size = time.monotonic(), now
        time.sleep(0.1)


def stopped(folder: Path, *overrides: str, environment: dict[str, str] | None = None) -> None:
    """A run with a checkpoint at step 5 alone, killed in step 9."""

    def action() -> None:
        updates = 0
        real = trainer.Trainer._update

        def update(self: Any) -> None:
            nonlocal updates
            updates += 1
            if updates == 9:
                settle(self)
                os.kill(os.getpid(), signal.SIGKILL)
            real(self)

        trainer.Trainer._update = update  # type: ignore[method-assign]
        trainer.Trainer._save_or_leave = lambda self: self._save() if self.step == 5 else None  # type: ignore
        if environment is None:
            train(folder, "machine.log_every=1", *overrides)
        else:
            with_wandb(folder, environment, *overrides)()

    assert in_child(action) == -signal.SIGKILL


def test_tensorboard_has_every_number_of_the_metrics_once(tmp_path: Path) -> None:
    stopped(tmp_path, "tracker=tensorboard")
    record = train(tmp_path, "tracker=tensorboard", "machine.log_every=1").record
    folder = record.folder / tensorboard_sink.FOLDER / "adamw cautious lr 0.01 lambda 0.15 seed 0"
    assert len(list(folder.glob("events.*"))) == 2
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    names = {"train": ("loss", "grad_norm", "lr"), "eval": ("loss", "accuracy")}
    for kind, values in names.items():
        lines = read_metrics(record.metrics_file, kind)
        for name in values:
            expected = [(line["step"], float(np.float32(line[name]))) for line in lines]
            assert found[f"{kind}/{name}"] == expected
    steps = [line["step"] for line in read_metrics(record.metrics_file, "train")]
    assert steps == list(range(1, 21))
    assert [step for step, _ in found["train/tokens_per_second"]] == steps


def sync(folder: Path, server: Server, *words: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "runs.py"), "--runs", str(folder / "runs"), "sync", *words]
    wandb = {"WANDB_API_KEY": key, "WANDB_BASE_URL": server.url, "WANDB_DIR": str(folder), "HOME": str(folder)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **wandb, "NETRC": str(folder / "netrc")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_one_command_syncs_what_was_offline_and_a_run_that_went_on_is_one_run(tmp_path: Path) -> None:
    """wandb's own program sends the folders of both starts to a server that keeps what comes."""
    offline = {"WANDB_MODE": "offline"}
    stopped(tmp_path, environment=offline)
    [record] = all_records(tmp_path / "runs")
    time.sleep(1)  # a folder's name has the second
    more = ["tracker.group=table10", "tracker.label=cautious", "tracker.tags=[table10,figure4]"]
    assert in_child(with_wandb(tmp_path, offline, *more)) == 0
    folders = unsynced(record)
    assert [folder.name.endswith(record.key) for folder in folders] == [True, True]
    with wandb_server() as server:
        refused = sync(tmp_path, server, "seed=0", key="")
        assert refused.returncode == 1
        assert "not synced" in refused.stdout or "0 of 2" in refused.stdout
        assert unsynced(record) == folders
        done = sync(tmp_path, server, "seed=0")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout == f"1/1  {record.folder}  2 of 2 starts\n"
        assert sync(tmp_path, server).stdout.startswith("nothing to sync")
    assert set(server.runs) == {record.key}
    said = server.runs[record.key]
    assert next(one["displayName"] for one in said if one["displayName"]) == "adamw cautious lr 0.01 lambda 0.15 seed 0"
    last = [one for one in said if one["displayName"]][-1]
    assert (last["displayName"], last["groupName"]) == ("cautious seed 0", "table10")
    assert last["tags"] == ["table10", "figure4", "smoke", "adamw", "cautious"]
    rows = [(row["_step"], row["train/loss"]) for row in server.history[record.key] if "train/loss" in row]
    lines = [(line["step"], line["loss"]) for line in read_metrics(record.metrics_file, "train")]
    # Between checkpoint and kill twice, with the same values; wandb keeps a step's row open until the next step.
    before = len(rows) - len(lines[5:])
    assert before in (7, 8)
    assert rows == [*lines[:before], *lines[5:]]


# --- a sweep is readable -----------------------------------------------------------------------------------------


def test_a_run_has_the_first_artifact_as_group_all_as_tags_and_what_differs_as_name(tmp_path: Path) -> None:
    study = Study("laptop", tmp_path)
    runs = [config for config, _ in all_missing([study.state(name) for name in ("figure9", "table10", "figure4")])]
    shown = {config["tracker"]["label"]: config["tracker"] for config in runs if config["seed"] == 0}
    shared = shown["338m cautious lr 0.08"]
    assert (shared["group"], shared["tags"]) == ("figure9", ["figure9", "table10", "figure4"])
    rest = shown["338m lion decoupled lr 0.012 lambda 1.5"]
    assert (rest["group"], rest["tags"]) == ("table10", ["table10", "figure4"])
    assert all_missing([study.state("figure9")])[0][0]["tracker"]["tags"] == ["figure9"]


def test_no_two_runs_of_an_artifact_have_one_name(tmp_path: Path) -> None:
    study = Study("laptop", tmp_path)
    for name in artifact_names():
        runs = [config for config, _ in study.state(name).missing]
        names = Counter((config["tracker"]["label"], config["seed"]) for config in runs)
        assert not runs or max(names.values()) == 1, name


def test_a_cells_file_carries_how_a_tracker_shows_it_and_its_name_and_its_key_do_not(
    tmp_path: Path, train_py: Callable[..., Ended]
) -> None:
    study = Study("smoke", tmp_path / "runs")
    (run, _), *_ = all_missing([study.state("table10"), study.state("figure4")])
    (alone, _), *_ = all_missing([study.state("figure4")])
    assert identity_of(run) == identity_of(alone)
    assert run["tracker"] != alone["tracker"]
    (first,) = write_cells([alone], tmp_path / "cells")
    (name,) = write_cells([run], tmp_path / "cells")
    assert name == first
    words = ["--multirun", "--config-dir", str(tmp_path / "cells"), f"experiment={name}"]
    (config,) = train_py(*words, "tracker=wandb").configs
    assert identity(config) == identity_of(run)
    assert vars(config.tracker) == {**run["tracker"], "name": "wandb"}
    (config,) = train_py(*words).configs
    assert config.tracker.name == "none"


@pytest.mark.parametrize("overrides", [["tracker=tensorboard"], ["tracker.label=x", "tracker.tags=[a]"]])
def test_no_tracker_changes_a_runs_identity(overrides: list[str]) -> None:
    assert identity(compose_config(overrides)) == identity(compose_config(["tracker=none"]))
