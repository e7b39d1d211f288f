"""A run that is stopped, in whatever way and at whatever moment, ends with the same bits as one left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cwd.errors import UserError
from cwd.optim import engine, update
from cwd.runs import all_records, read_metrics
from cwd.runs import record as record_module
from cwd.training import checkpoint, trainer
from cwd.training.tasks.language import LanguageTask
from tests.training_helpers import REAL_SAVE, in_child, outcome, save_on_a_full_disk, smoke_config, train

ROOT = Path(__file__).resolve().parents[1]
EVERY_STEP = "machine.checkpoint_seconds=0"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(number: int, original, action, after: bool = False):
    """`original`, but on its `number`-th call (from 1) `action` comes first, or after."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number and not after:
            action()
        result = original(*args, **kwargs)
        if calls == number and after:
            action()
        return result

    return wrapped


def half_written(state, path) -> None:
    """torch.save, cut off in the middle of the file."""
    REAL_SAVE(state, path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    die()


def die_before_the_first_tensor_is_written() -> None:
    update.direction = on_call(1, update.direction, die, after=True)


# Where a process is killed: (object, attribute, its replacement in the process that dies).
MOMENTS = {
    "in the middle of an optimizer step": lambda: (
        engine.RuleOptimizer,
        "step",
        on_call(7, engine.RuleOptimizer.step, die_before_the_first_tensor_is_written),
    ),
    "between the gradient and the update": lambda: (
        trainer.Trainer,
        "_accumulate",
        on_call(7, trainer.Trainer._accumulate, die, after=True),
    ),
    "in an evaluation": lambda: (LanguageTask, "measure", on_call(4, LanguageTask.measure, die)),
    "while a checkpoint's file is written": lambda: (
        checkpoint.torch,
        "save",
        lambda state, path: half_written(state, path) if state["step"] == 13 else REAL_SAVE(state, path),
    ),
    "between writing a checkpoint and naming it": lambda: (
        checkpoint.os,
        "rename",
        on_call(2, os.rename, die),
    ),
    "after naming a checkpoint": lambda: (checkpoint.os, "rename", on_call(2, os.rename, die, after=True)),
    "before the summary": lambda: (trainer.Trainer, "_save_model", on_call(1, trainer.Trainer._save_model, die)),
    "between the checkpoints and the summary": lambda: (
        record_module.Record,
        "finish",
        on_call(1, record_module.Record.finish, die),
    ),
    "after the final weights": lambda: (
        trainer.Trainer,
        "_save_model",
        on_call(1, trainer.Trainer._save_model, die, after=True),
    ),
}


def run_and_die(folder: Path, moment: str, overrides: tuple[str, ...]) -> int:
    def action() -> None:
        owner, name, replacement = MOMENTS[moment]()
        setattr(owner, name, replacement)
        train(folder, *overrides)

    return in_child(action)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of a run left alone, by its overrides; computed once."""
    known: dict[tuple[str, ...], dict] = {}

    def of(*overrides: str) -> dict:
        if overrides not in known:
            known[overrides] = outcome(train(tmp_path_factory.mktemp("alone"), *overrides).record)
        return known[overrides]

    return of


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_once_ends_with_the_same_bits(moment, tmp_path, undisturbed):
    overrides = ("optimizer=muon", "decay=random", EVERY_STEP, "telemetry.every=3", "machine.log_every=4")
    assert run_and_die(tmp_path, moment, overrides) == -signal.SIGKILL
    kept = ("final" not in moment and "summary" not in moment) or list(tmp_path.glob("runs/*/checkpoints/step-*"))
    assert kept, "the last checkpoint went before the result was there"
    result = train(tmp_path, *overrides)
    assert result.state == "done"
    assert outcome(result.record) == undisturbed(*overrides)
    assert not (result.record.folder / "checkpoints").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd"])
def test_a_run_killed_three_times_ends_with_the_same_bits(optimizer, tmp_path, undisturbed):
    overrides = (f"optimizer={optimizer}", EVERY_STEP, "training.steps=40")
    for moment in (
        "in the middle of an optimizer step",
        "in an evaluation",
        "between writing a checkpoint and naming it",
    ):
        assert run_and_die(tmp_path, moment, overrides) == -signal.SIGKILL
    result = train(tmp_path, *overrides)
    assert outcome(result.record) == undisturbed(*overrides)
    assert len([line for line in read_raw(result.record.metrics_file) if '"resume"' in line]) >= 2


def read_raw(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_run_killed_without_any_checkpoint_starts_anew(tmp_path, undisturbed):
    overrides = ("optimizer=adamw", "machine.checkpoint_seconds=1000")
    assert run_and_die(tmp_path, "between the gradient and the update", overrides) == -signal.SIGKILL
    result = train(tmp_path, *overrides)
    assert outcome(result.record) == undisturbed(*overrides)


def test_the_command_killed_at_any_time_ends_with_the_same_bits(tmp_path, undisturbed):
    """The real command line, killed by the clock three times, at moments that nothing in the code chose."""
    overrides = ["optimizer=adamw", EVERY_STEP, "training.steps=60"]
    place = [f"machine.runs={tmp_path}/runs", f"machine.data={tmp_path}/data", "machine.progress=summary"]
    command = [sys.executable, str(ROOT / "train.py"), "scale=smoke", "tracker=none", *place, *overrides]
    kills = 0
    for delay in 0.1, 0.35, 0.6:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        wait_for(lambda process=process: process.poll() is not None or list(tmp_path.glob("runs/*/checkpoints/step-*")))
        time.sleep(delay)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 1
    result = train(tmp_path, *overrides)
    assert outcome(result.record) == undisturbed(*overrides)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(number, tmp_path, undisturbed):
    overrides = ("optimizer=lion", "machine.checkpoint_seconds=1000")

    def interrupted() -> None:
        trainer.Trainer._update = on_call(5, trainer.Trainer._update, lambda: os.kill(os.getpid(), number))
        train(tmp_path, *overrides)

    assert in_child(interrupted) == 128 + number
    [record] = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert [path.name for path in (record / "checkpoints").iterdir()] == ["step-00000005"]
    result = train(tmp_path, *overrides)
    assert outcome(result.record) == undisturbed(*overrides)


def test_a_signal_leaves_the_status_interrupted_with_its_step(tmp_path):
    def interrupted() -> None:
        trainer.Trainer._update = on_call(5, trainer.Trainer._update, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(tmp_path)

    in_child(interrupted)
    [record] = all_records(tmp_path / "runs")
    assert record.status["state"] == "interrupted"
    assert record.status["step"] == 5
    assert record.summary is None


def test_a_sweep_that_is_ended_saves_its_runs_and_leaves_no_process(tmp_path):
    place = [f"machine.runs={tmp_path}/runs", f"machine.data={tmp_path}/data", "machine.progress=summary"]
    words = ["-m", "scale=smoke", "tracker=none", *place, "hydra/launcher=local", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, str(ROOT / "train.py"), *words, "training.steps=1000000", "seed=0,1"]

    def both_are_under_way() -> bool:
        return sum(b'"step": 10' in path.read_bytes() for path in tmp_path.glob("runs/*/metrics.jsonl")) == 2

    sweep = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(both_are_under_way, seconds=300)
        sweep.terminate()
        output, _ = sweep.communicate(timeout=300)  # ends when the last worker has closed its standard output
    finally:
        sweep.kill()  # its workers end with it
    assert output.count("saved; the same command goes on from there") == 2
    records = all_records(tmp_path / "runs")
    assert [record.status["state"] for record in records] == ["interrupted"] * 2
    assert all(list(record.folder.glob("checkpoints/step-*")) for record in records)


@pytest.mark.parametrize("damage", ["truncate", "flip", "no checksum"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(damage, tmp_path, undisturbed, capsys):
    overrides = ("optimizer=adamw", EVERY_STEP)
    run_and_die(tmp_path, "between the gradient and the update", overrides)
    newest = max(tmp_path.glob("runs/*/checkpoints/step-*"))
    assert len(list(newest.parent.glob("step-*"))) == checkpoint.KEEP
    state = newest / "state.pt"
    if damage == "truncate":
        os.truncate(state, 1000)
    elif damage == "flip":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    else:
        (newest / "checksum.json").unlink()
    result = train(tmp_path, *overrides)
    assert f"checkpoint {newest}: damaged" in capsys.readouterr().out
    assert outcome(result.record) == undisturbed(*overrides)
    assert min(line["step"] for line in read_metrics(result.record.metrics_file)) == 0


def test_damaged_checkpoints_do_not_push_out_the_good_ones(tmp_path, undisturbed):
    overrides = ("optimizer=adamw", EVERY_STEP)
    run_and_die(tmp_path, "between the gradient and the update", overrides)
    folders = sorted(tmp_path.glob("runs/*/checkpoints/step-*"))
    for folder in folders:
        (folder / "state.pt").write_bytes(b"nothing")
    assert run_and_die(tmp_path, "between the gradient and the update", overrides) == -signal.SIGKILL
    assert all(checkpoint._is_whole(folder) for folder in tmp_path.glob("runs/*/checkpoints/step-*"))
    assert outcome(train(tmp_path, *overrides).record) == undisturbed(*overrides)


def test_a_full_disk_is_a_failed_run_with_its_last_checkpoint_intact(tmp_path, undisturbed, monkeypatch):
    overrides = ("optimizer=adamw", EVERY_STEP)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", save_on_a_full_disk)
        with pytest.raises(UserError, match="No space left"):
            train(tmp_path, *overrides)
    [record] = all_records(tmp_path / "runs")
    assert record.status["state"] == "failed"
    assert "No space left" in record.status["message"]
    assert max(path.name for path in (record.folder / "checkpoints").glob("step-*")) == "step-00000008"
    assert outcome(train(tmp_path, *overrides).record) == undisturbed(*overrides)


def test_a_checkpoint_holds_nothing_that_could_run_code(tmp_path):
    run_and_die(tmp_path, "between the gradient and the update", ("optimizer=muon", EVERY_STEP))
    newest = max(tmp_path.glob("runs/*/checkpoints/step-*"))
    state = torch.load(newest / "state.pt", weights_only=True)
    assert state["step"] == int(newest.name.removeprefix("step-"))


def test_a_finished_run_is_returned_at_once_and_untouched(tmp_path, monkeypatch):
    first = train(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.record.folder.rglob("*")}
    monkeypatch.setattr(trainer.Trainer, "fit", lambda self: pytest.fail("trained again"))
    again = train(tmp_path)
    assert (again.state, again.summary) == ("done", first.summary)
    assert {path: path.stat().st_mtime_ns for path in first.record.folder.rglob("*")} == before


def test_what_the_machine_is_does_not_make_another_run(tmp_path):
    first = train(tmp_path)
    again = train(tmp_path, "machine.log_every=5", "machine.checkpoint_seconds=1", "machine.micro_batch_size=2")
    assert again.record.key == first.record.key
    assert smoke_config(tmp_path, "seed=1") != smoke_config(tmp_path)
