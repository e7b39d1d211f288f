"""Checkpoints that a thread writes while training goes on: the same bits, one at a time, and nothing good is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from cwd.errors import UserError
from cwd.runs import Record, all_records, read_metrics
from cwd.training import checkpoint, saving, trainer
from tests.training_helpers import in_child, outcome, save_on_a_full_disk, train

BEHIND, WAITING = "machine.checkpoint_background=true", "machine.checkpoint_background=false"
EVERY_STEP = "machine.checkpoint_seconds=0"
REAL = saving.write_checkpoint
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(train(tmp_path_factory.mktemp("alone"), "machine.log_every=1").record)


def only(folder: Path) -> Record:
    [record] = all_records(folder / "runs")
    return record


def saved_steps(record: Record) -> list[int]:
    """Of the checkpoints on the disk, all of them whole."""
    folders = sorted((record.folder / "checkpoints").glob("step-*"))
    assert all(checkpoint._is_whole(folder) for folder in folders)
    return [int(folder.name.removeprefix("step-")) for folder in folders]


def save_after(patch: pytest.MonkeyPatch, *steps: int) -> str:
    """Checkpoints after these steps, and after a signal; the rest is one more word for the run."""
    real = trainer.Trainer._save_or_leave

    def save_or_leave(self: trainer.Trainer) -> None:
        if self.step in steps:
            self._save()
        real(self)

    patch.setattr(trainer.Trainer, "_save_or_leave", save_or_leave)
    return "machine.checkpoint_seconds=100000"


def after_updates(patch: pytest.MonkeyPatch, action: Callable[[int], None]) -> None:
    """`action` is called with the number of each update, after it."""
    real = trainer.Trainer._update

    def update(self: trainer.Trainer) -> None:
        real(self)
        action(self.step + 1)

    patch.setattr(trainer.Trainer, "_update", update)


def test_what_the_thread_writes_is_the_state_of_its_step_whatever_training_does_meanwhile(tmp_path):
    """The thread holds step 4 back until four more updates are done; a run that waits saves the same."""
    moved_on = threading.Event()

    def write(root: Path, step: int, *rest: Any) -> int:
        if step == 4:
            assert moved_on.wait(60)
        return REAL(root, step, *rest)

    def stop(step: int) -> None:
        if step == 8:
            moved_on.set()
            os.kill(os.getpid(), signal.SIGTERM)

    def behind() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "write_checkpoint", write)
            after_updates(patch, stop)
            train(tmp_path / "behind", "optimizer=muon", BEHIND, save_after(patch, 4))

    def waiting() -> None:
        with pytest.MonkeyPatch.context() as patch:
            after_updates(patch, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
            train(tmp_path / "waiting", "optimizer=muon", WAITING)

    assert in_child(behind) == in_child(waiting) == 128 + signal.SIGTERM
    assert saved_steps(only(tmp_path / "behind")) == [4, 8]
    one, other = (only(tmp_path / name).folder / "checkpoints/step-00000004" for name in ("behind", "waiting"))
    assert_same_state(one / "state.pt", other / "state.pt")


def assert_same_state(one: Path, other: Path) -> None:
    """Tensors to the bit, shared memory included, and all else but times."""
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    del a["seconds"], b["seconds"]
    (found, form), (expected, same) = tree_flatten(a), tree_flatten(b)
    assert form == same
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y
    assert abs(one.stat().st_size - other.stat().st_size) < 1024


def test_a_kill_while_the_thread_writes_loses_nothing_that_was_good(tmp_path, undisturbed):
    """The thread has written step 6 and not yet named it, training is three updates further, and SIGKILL comes."""
    real, stuck = checkpoint._publish, threading.Event()

    def publish(work: Path, root: Path, step: int) -> int:
        if step == 6:
            stuck.set()
            time.sleep(1000)
        return real(work, root, step)

    def die(step: int) -> None:
        if step == 9:
            assert stuck.wait(60)
            os.kill(os.getpid(), signal.SIGKILL)

    def killed() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "_publish", publish)
            after_updates(patch, die)
            train(tmp_path, BEHIND, "machine.log_every=1", save_after(patch, 3, 6))

    assert in_child(killed) == -signal.SIGKILL
    record = only(tmp_path)
    assert (record.folder / "checkpoints" / ".saving.tmp" / "state.pt").exists()
    assert saved_steps(record) == [3]
    assert (record.status["state"], record.status["step"]) == ("interrupted", 3)
    assert read_metrics(record.metrics_file)[-1]["step"] == 8
    result = train(tmp_path, BEHIND, "machine.log_every=1")
    assert '{"kind": "resume", "step": 3}' in record.metrics_file.read_text()
    assert outcome(result.record) == undisturbed


def test_a_signal_waits_for_the_thread_and_then_saves_its_own_step(tmp_path, undisturbed):
    begun = threading.Event()

    def write(root: Path, step: int, *rest: Any) -> int:
        if step == 1:
            assert begun.wait(60)
            time.sleep(0.3)
        return REAL(root, step, *rest)

    def stop(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
            begun.set()

    def interrupted() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saving, "write_checkpoint", write)
            after_updates(patch, stop)
            train(tmp_path, BEHIND, "machine.log_every=1", save_after(patch, 1))

    assert in_child(interrupted) == 128 + signal.SIGUSR1
    record = only(tmp_path)
    assert saved_steps(record) == [1, 5]
    assert (record.status["state"], record.status["step"]) == ("interrupted", 5)
    assert outcome(train(tmp_path, "machine.log_every=1").record) == undisturbed


def test_what_the_thread_meets_fails_the_run_as_if_training_had_met_it(tmp_path, monkeypatch, undisturbed):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", save_on_a_full_disk)
        with pytest.raises(UserError, match=r"No space left on device.*what was saved before is intact"):
            train(tmp_path, EVERY_STEP, BEHIND, "machine.log_every=1")
    record = only(tmp_path)
    assert record.status["state"] == "failed"
    assert (record.status["step"], saved_steps(record)) == (8, [7, 8])
    assert "No space left on device" in record.status["message"]
    assert not list((record.folder / "checkpoints").glob(".*"))
    assert outcome(train(tmp_path, EVERY_STEP, BEHIND, "machine.log_every=1").record) == undisturbed


def test_what_the_thread_meets_last_fails_the_run_before_its_result(tmp_path, monkeypatch):
    done = threading.Event()

    def full(root: Path, step: int, *rest: Any) -> int:
        assert done.wait(60)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_checkpoint", full)
    after_updates(monkeypatch, lambda step: done.set() if step == 4 else None)
    with pytest.raises(UserError, match="No space left on device"):
        train(tmp_path, "training.steps=4", BEHIND, save_after(monkeypatch, 2))
    record = only(tmp_path)
    assert (record.status["state"], record.summary) == ("failed", None)


def test_there_is_one_copy_and_one_checkpoint_at_a_time(tmp_path, monkeypatch, undisturbed):
    places, at_once, most = [], 0, 0

    def write(root: Path, step: int, content: checkpoint.Content, *rest: Any) -> int:
        nonlocal at_once, most
        at_once, most = at_once + 1, max(most, at_once + 1)
        places.append([value.data_ptr() for value in content.state["model"].values()])
        try:
            assert threading.current_thread() is not threading.main_thread()
            return REAL(root, step, content, *rest)
        finally:
            at_once -= 1

    monkeypatch.setattr(saving, "write_checkpoint", write)
    record = train(tmp_path, EVERY_STEP, BEHIND, "machine.log_every=1").record
    assert outcome(record) == undisturbed
    assert (len(places), most) == (19, 1)
    assert all(place == places[0] for place in places)  # the first copy's memory, again and again


@pytest.mark.parametrize(("large", "thread"), [(saving.LARGE, False), (1, True)])
def test_on_a_cpu_a_thread_writes_large_states_alone(large, thread, tmp_path, monkeypatch):
    threads = []

    def write(*arguments: Any) -> int:
        threads.append(threading.current_thread() is not threading.main_thread())
        return REAL(*arguments)

    monkeypatch.setattr(saving, "LARGE", large)
    monkeypatch.setattr(saving, "write_checkpoint", write)
    train(tmp_path, EVERY_STEP, "training.steps=4")
    assert threads == [thread] * 3


@pytest.mark.parametrize("behind", [False, True])
def test_what_training_waits_and_what_the_thread_works_are_told_apart(behind, tmp_path, monkeypatch):
    done = threading.Event()

    def write(*arguments: Any) -> int:
        time.sleep(0.2)
        assert not behind or done.wait(60)  # the thread, of which training is then independent
        return REAL(*arguments)

    monkeypatch.setattr(saving, "write_checkpoint", write)
    after_updates(monkeypatch, lambda step: (time.sleep(0.3), done.set()) if step == 3 else None)
    words = [BEHIND if behind else WAITING, "training.steps=4", save_after(monkeypatch, 2)]
    [line] = read_metrics(train(tmp_path, *words).record.metrics_file, "speed")
    assert line["checkpoints"] == 1
    assert line["checkpoint_bytes"] > 1000
    if behind:
        assert line["checkpoint_background_seconds"] > 0.3
    else:
        assert line["checkpoint_seconds"] > 0.2
        assert line["checkpoint_background_seconds"] == 0
