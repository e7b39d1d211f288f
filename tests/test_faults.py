"""What breaks under a run: a disk that is full, read-only or gone, files that are damaged. One clear line each, and
nothing is lost that was good: when the cause is gone, the run ends with the bits of one left alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cwd.benchmarks.soak import was_trained_twice
from cwd.errors import UserError
from cwd.runs import Record, all_records
from cwd.training import checkpoint, trainer
from tests.training_helpers import outcome, train

OVERRIDES = ("optimizer=adamw", "machine.checkpoint_seconds=0")
MOUNTS = os.geteuid() == 0
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return outcome(train(tmp_path_factory.mktemp("alone"), *OVERRIDES).record)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts something on a folder of this name."""
    made: list[Path] = []

    def do(name: str, *words: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *words, str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        made.append(folder)
        return folder

    yield do
    for folder in reversed(made):
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def small_disk(mount: Callable[..., Path], tmp_path: Path, name: str = "disk") -> Path:
    """Four megabytes for the runs; the data lies elsewhere."""
    disk = mount(name, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
    (tmp_path / "data").mkdir()
    (disk / "data").symlink_to(tmp_path / "data")
    return disk


@pytest.fixture(params=["false", "true"], ids=["waiting", "background"])
def broken_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], str]:
    """What the run says in the end when the shell's command comes after nine updates; it must be one line. Training
    waits for its checkpoints, or a thread writes them.
    """

    def do(command: str, folder: Path) -> str:
        real = trainer.Trainer._update

        def update(self: trainer.Trainer) -> None:
            real(self)
            if self.step + 1 == 9:
                subprocess.run(command, shell=True, check=True)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_update", update)
            with pytest.raises(UserError) as caught:
                train(folder, *OVERRIDES, f"machine.checkpoint_background={request.param}")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return do


def only(folder: Path) -> Record:
    [record] = all_records(folder / "runs")
    return record


def assert_saved(record: Record, step: int) -> None:
    """The newest checkpoint is that of this step, and whole; no half of another one lies about."""
    folders = sorted((record.folder / "checkpoints").iterdir())
    assert [path.name for path in folders] == [f"step-{number:08d}" for number in (step - 1, step)]
    assert all(checkpoint._is_whole(path) for path in folders)


@pytest.mark.skipif(not MOUNTS, reason="only root may mount")
def test_a_full_disk_fails_the_run_in_one_line_and_it_goes_on_when_there_is_room(
    mount, broken_by, tmp_path, undisturbed
):
    disk = small_disk(mount, tmp_path)
    line = broken_by(f"head -c 100M /dev/zero > {disk}/filler 2>/dev/null; true", disk)
    record = only(disk)
    assert line.startswith(f"run {record.key}: {disk}")
    assert "cannot be written (No space left on device); what was saved before is intact" in line
    assert record.status["state"] == "failed"
    assert "No space left on device" in record.status["message"]
    assert_saved(record, 8)
    assert "No space left on device" in broken_by("true", disk)  # still: no start may harm what is there
    assert_saved(record, 8)
    (disk / "filler").unlink()
    assert outcome(train(disk, *OVERRIDES).record) == undisturbed


@pytest.mark.skipif(not MOUNTS, reason="only root may mount")
def test_a_folder_that_becomes_read_only_fails_the_run_in_one_line(mount, broken_by, tmp_path, undisturbed):
    disk = small_disk(mount, tmp_path)
    place = mount("place", "--bind", str(disk))
    line = broken_by(f"mount --bind {disk} {place} && mount -o remount,ro,bind {place}", place)
    record = only(place)
    assert f"run {record.key}: {place}" in line
    assert "(Read-only file system); what was saved before is intact" in line
    assert record.status["state"] == "interrupted"  # which is what it is: nothing can be written down
    assert_saved(record, 8)
    assert "cannot be written (Read-only file system)" in broken_by("true", place)
    subprocess.run(["umount", str(place)], check=True)
    assert outcome(train(place, *OVERRIDES).record) == undisturbed


@pytest.mark.skipif(not MOUNTS, reason="only root may mount")
def test_a_disk_that_vanishes_fails_the_run_in_one_line_and_nothing_is_written_in_its_place(
    mount, broken_by, tmp_path, undisturbed
):
    disk = small_disk(mount, tmp_path)
    place = mount("place", "--bind", str(disk))
    line = broken_by(f"umount -l {place}", place)
    assert line.startswith("run ")
    assert "is gone; is its disk there?; what was saved before is intact" in line
    assert list(place.iterdir()) == []
    mount("place", "--bind", str(disk))
    assert only(place).status["state"] == "interrupted"
    assert_saved(only(place), 8)
    assert outcome(train(place, *OVERRIDES).record) == undisturbed


def crash(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int = 9) -> Record:
    """A run that broke in the update of this number."""
    with monkeypatch.context() as patch:
        real = trainer.Trainer._update

        def update(self: trainer.Trainer) -> None:
            if self.step + 1 == step:
                raise ZeroDivisionError
            real(self)

        patch.setattr(trainer.Trainer, "_update", update)
        with pytest.raises(ZeroDivisionError):
            train(folder, *OVERRIDES)
    return only(folder)


def test_a_damaged_configuration_and_a_torn_line_are_said_once_and_repaired(tmp_path, monkeypatch, undisturbed, capsys):
    record = crash(tmp_path, monkeypatch)
    (record.folder / "config.json").write_text('{"key": ')
    with open(record.metrics_file, "ab") as file:
        file.write(b'{"kind": "train", "st')
    capsys.readouterr()
    result = train(tmp_path, *OVERRIDES)
    out = capsys.readouterr().out
    assert out.count("\n") == 3
    assert f"{record.folder / 'config.json'}: damaged, written anew" in out
    assert f"{record.metrics_file}: the last line was cut off, and is passed over" in out
    assert outcome(result.record) == undisturbed
    assert result.record.config
    assert not was_trained_twice(result.record)


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_starts_anew(tmp_path, monkeypatch, undisturbed, capsys):
    record = crash(tmp_path, monkeypatch)
    folders = sorted((record.folder / "checkpoints").iterdir())
    for folder in folders:
        (folder / "state.pt").write_bytes(b"nothing")
    capsys.readouterr()
    result = train(tmp_path, *OVERRIDES)
    out = capsys.readouterr().out
    assert f"checkpoint {folders[1]}: damaged, trying the one before" in out
    assert f"checkpoint {folders[0]}: damaged, none is left" in out
    assert outcome(result.record) == undisturbed


def test_checkpoints_that_a_kill_left_behind_a_result_are_removed(tmp_path):
    record = train(tmp_path, *OVERRIDES).record
    (record.folder / "checkpoints" / "step-00000019").mkdir(parents=True)
    assert train(tmp_path, *OVERRIDES).state == "done"
    assert not (record.folder / "checkpoints").exists()


def test_a_disk_that_takes_a_part_of_a_line_is_not_taken_for_one_that_took_it(tmp_path, monkeypatch, undisturbed):
    """The system writes what still fits, and says how much: the rest must follow, or the disk's error."""
    from cwd.runs import metrics

    real = open

    class Narrow:
        def __init__(self, *words: Any, **more: Any) -> None:
            self._file = real(*words, **more)

        def write(self, content: bytes) -> int:
            return self._file.write(content[:7])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(metrics, "open", Narrow, raising=False)
    assert outcome(train(tmp_path, *OVERRIDES).record) == undisturbed
