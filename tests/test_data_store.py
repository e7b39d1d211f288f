"""Prepared data: found again, checked, rebuilt when damaged, whole or absent after kills and races."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwd import lock
from cwd.data import prepare as prepare_module
from cwd.data.corpora import Document, TextFiles
from cwd.errors import UserError
from tests.data_helpers import REPOSITORY, Memory, ready, ready_from


def test_unchanged_sources_are_not_read_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(source, tmp_path / "data")
    monkeypatch.setattr(TextFiles, "documents", lambda self: pytest.fail("the sources were read again"))
    assert ready(source, tmp_path / "data").fingerprint == first.fingerprint
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert ready(source, tmp_path / "moved").fingerprint == first.fingerprint


def test_touched_sources_are_read_again_and_changed_ones_prepared_again(source: Path, tmp_path: Path) -> None:
    says: list[str] = []
    first = ready(source, tmp_path / "data", says)
    os.utime(source / "a.jsonl", ns=(1, 1))
    del says[:]
    assert ready(source, tmp_path / "data", says).fingerprint == first.fingerprint
    assert not says
    with open(source / "a.jsonl", "a") as handle:
        handle.write('{"text": "one more"}\n')
    assert ready(source, tmp_path / "data", says).fingerprint != first.fingerprint
    (source / "b.txt").write_text("and another file")
    assert ready(source, tmp_path / "data").manifest["splits"]["train"]["documents"] >= 38
    assert len({ready(source, tmp_path / "data").folder, first.folder}) == 2


def truncate(folder: Path) -> None:
    with open(folder / "train.bin", "r+b") as handle:
        handle.truncate(100)


def flip_a_byte(folder: Path) -> None:
    path = folder / "validation.bin"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:50])


def alter_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"vocab_size": 280', '"vocab_size": 281'))


def replace_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


def remove_a_file(folder: Path) -> None:
    (folder / "train.bin").unlink()


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_byte, break_tokenizer, break_manifest, alter_manifest, replace_manifest, remove_a_file],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_noticed_said_and_repaired(source: Path, tmp_path: Path, damage: Any) -> None:
    first = ready(source, tmp_path / "data", tokenizer="bpe", vocab_size=280)
    good = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    damage(first.folder)
    says: list[str] = []
    again = ready(source, tmp_path / "data", says, tokenizer="bpe", vocab_size=280)
    assert [line for line in says if "building it again" in line and str(first.folder) in line] == says[:1]
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == good
    assert again.fingerprint == first.fingerprint
    assert not list((tmp_path / "data").glob("*.tmp"))


def test_a_broken_index_is_no_harm(source: Path, tmp_path: Path) -> None:
    first = ready(source, tmp_path / "data")
    for content in ("", "[]", '{"key": 3}', "\0"):
        next((tmp_path / "data").glob("index-*.json")).write_text(content)
        assert ready(source, tmp_path / "data").fingerprint == first.fingerprint


# Counts the file operations under `root` as they happen and kills its own process just before the one with that number.
CHILD = """
import os, signal, sys
from pathlib import Path
source, root, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
from cwd.data.corpora import TextFiles
from cwd.data.prepare import prepare
seen = 0
def watch(event, arguments):
    global seen
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock") and root in str(arguments):
        seen += 1
        if seen == stop:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
while stop < 0 and not Path(source).with_suffix(".go").exists():
    pass
data = prepare(TextFiles([source]), tokenizer="bytes", vocab_size=None, validation_fraction=0.1, root=Path(root),
               progress=lambda line: None)
print(seen, data.fingerprint, data.folder.name)
"""


def start(source: Path, root: Path, stop: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(source), str(root), str(stop)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize("damaged", [False, True], ids=["first preparation", "repair"])
def test_a_kill_at_any_moment_leaves_nothing_mistaken_for_good(source: Path, tmp_path: Path, damaged: bool) -> None:
    good = ready(source, tmp_path / "good")
    expected = {path.name: path.read_bytes() for path in good.folder.iterdir()}

    def root(stop: int) -> Path:
        folder = tmp_path / f"data{stop:03}"
        if damaged:
            shutil.copytree(tmp_path / "good", folder)
            flip_a_byte(folder / good.folder.name)
        return folder

    whole = start(source, root(0), 0)
    operations = int(whole.communicate(timeout=30)[0].split()[0])
    assert operations > 10
    stops = sorted(set(np.linspace(1, operations, 12).astype(int).tolist()))
    children = [start(source, root(stop), stop) for stop in stops]
    assert [child.wait(timeout=60) for child in children] == [-signal.SIGKILL] * len(stops)
    for stop in stops:
        folder = tmp_path / f"data{stop:03}"
        data = ready(source, folder)
        assert {path.name: path.read_bytes() for path in data.folder.iterdir()} == expected
        assert data.fingerprint == good.fingerprint
        assert not list(folder.glob("*.tmp"))


def test_two_processes_at_once_end_with_the_same_good_folder(source: Path, tmp_path: Path) -> None:
    children = [start(source, tmp_path / "data", -1) for _ in range(3)]
    source.with_suffix(".go").touch()
    answers = {tuple(child.communicate(timeout=60)[0].split()[1:]) for child in children}
    data = ready(source, tmp_path / "data")
    assert answers == {(data.fingerprint, data.folder.name)}
    assert sorted(path.suffix for path in (tmp_path / "data").iterdir() if ".lock" not in path.name) == ["", ".json"]


def test_a_living_process_keeps_its_temporary_folder(source: Path, tmp_path: Path) -> None:
    living, dead = "0123456789abcdef", "fedcba9876543210"
    for key in (living, dead):
        (tmp_path / "data" / f"{key}.tmp").mkdir(parents=True)
    with open(tmp_path / "data" / f"{living}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ready(source, tmp_path / "data")
        assert [path.name for path in (tmp_path / "data").glob("*.tmp")] == [f"{living}.tmp"]


def test_files_that_are_not_ours_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "work.tmp").mkdir(parents=True)
    for name in ("notes.tmp", "work.tmp/kept", "0123.tmp"):
        (tmp_path / "data" / name).write_text("mine")
    before = {path.name for path in (tmp_path / "data").iterdir()}
    ready(source, tmp_path / "data")
    after = {path.name for path in (tmp_path / "data").iterdir()}
    assert before <= after
    assert not {name for name in after if name.startswith(("work.lock", "notes.lock", "0123.lock"))}


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    class Shifting(Memory):
        def documents(self) -> Iterator[Document]:
            yield from super().documents()
            self.texts = ["other", *self.texts[1:]]

    with pytest.raises(UserError, match="changed while they were read"):
        ready_from(Shifting(["a", "b"]), tmp_path)


def test_prepared_data_is_found_without_importing_anything_heavy(source: Path, tmp_path: Path) -> None:
    heavy = ready(source, tmp_path / "data", tokenizer="bpe", vocab_size=280)
    code = CHILD.replace('"bytes", vocab_size=None', '"bpe", vocab_size=280')
    code += "assert not {'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)"
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "data"), "0"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert answer.split()[1] == heavy.fingerprint


HOLD = """
import sys, time
from pathlib import Path
from cwd import lock
lock.BEAT = 0.1
lock._machine = lambda: "another"
lock._flock = lambda file, kind: True
with lock.Lock(Path(sys.argv[1]), "data").held(0.0):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def elsewhere(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process of another machine, which flock does not reach, prepares the same data."""
    key = ready(source, tmp_path / "other").folder.name
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(lock, "_flock", lambda file, kind: True)
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "data" / f"{key}.lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_preparation_on_another_machine_is_waited_for_and_taken_over_when_it_is_dead(elsewhere, source, tmp_path):
    says: list[str] = []
    found: list[str] = []
    waiting = threading.Thread(
        target=lambda: found.append(ready(source, tmp_path / "data", says).fingerprint), daemon=True
    )
    waiting.start()
    waiting.join(timeout=4.0)  # twice the silence after which a dead one is replaced
    assert waiting.is_alive()
    assert says == ["data: waiting for another process that prepares the same data"]
    elsewhere.kill()
    waiting.join(timeout=60.0)
    assert found == [ready(source, tmp_path / "other").fingerprint]


def test_a_preparation_that_was_taken_over_puts_nothing_in_its_place(source, tmp_path, monkeypatch):
    build = prepare_module._build

    def slowly(work: Path, *arguments: Any) -> None:
        build(work, *arguments)
        [own] = work.parent.glob("*.lock.1")
        own.with_suffix(".2").write_text("{}")  # of another machine, after this process was stopped for long

    monkeypatch.setattr(prepare_module, "_build", slowly)
    with pytest.raises(UserError, match=r"^data: .* has taken it over, as this process was silent"):
        ready(source, tmp_path / "data")
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir() and path.suffix != ".tmp"]
