"""Published corpora: read in their real formats, prepared in parallel and through kills to the same bytes, checked."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cwd.data import building, tokens
from cwd.data.packing import is_held_out
from cwd.data.published import Published, local_files
from cwd.data.sets import find_set
from cwd.errors import UserError
from tests.data_helpers import REPOSITORY
from tests.published_helpers import C4, CORPORA, FILES, content, prepared, request_for, texts, write_corpus


def all_tokens(data: Any, split: str) -> bytes:
    return bytes(np.asarray(data.tokens(split)[0 : len(data.tokens(split))]))


@pytest.mark.parametrize("name", CORPORA)
def test_tokens_are_the_documents_in_order_with_nothing_between(name: str, tmp_path: Path) -> None:
    train, validation = write_corpus(name, tmp_path / "source")
    data = prepared(request_for(CORPORA[name], tmp_path / "data"), tmp_path / "source")
    if not validation:
        validation = [text for text in train if held_out(text, 0.2)]
        train = [text for text in train if not held_out(text, 0.2)]
        assert 3 <= len(validation) <= 20
    for split, documents in (("train", train), ("validation", validation)):
        kept = [text for text in documents if text.strip()]
        assert all_tokens(data, split) == "".join(kept).encode()
        counts = data.manifest["splits"][split]
        assert (counts["documents"], counts["bytes"]) == (len(kept), len("".join(kept).encode()))
    assert not list((tmp_path / "data").glob("*.part"))


def held_out(text: str, fraction: float) -> bool:
    words = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
    return bool(text.strip()) and int(words, 16) / 2**64 < fraction


def test_documents_that_differ_in_whitespace_alone_are_on_the_same_side() -> None:
    for i in range(200):
        assert is_held_out(f"a {i}", 0.3) == is_held_out(f" a\t{i}\n\n", 0.3) == held_out(f"a {i}", 0.3)


def test_files_may_lie_in_one_folder_and_be_only_some(tmp_path: Path) -> None:
    write_corpus("pile", tmp_path)
    for path in [*(tmp_path / "train").iterdir()]:
        shutil.move(path, tmp_path)
    (tmp_path / "test.jsonl.zst").write_bytes(b"not read")
    found = local_files(CORPORA["pile"], str(tmp_path))
    assert [(file.split, file.name) for file in found] == [
        ("train", "00.jsonl.zst"),
        ("train", "01.jsonl.zst"),
        ("validation", "val.jsonl.zst"),
    ]
    write_corpus("c4", tmp_path / "c4")
    some = Published(**vars(C4) | {"shards": 3})
    assert [file.name[6:11] for file in local_files(some, str(tmp_path / "c4"))] == [
        *("train", "train", "train", "valid", "valid")
    ]
    assert [file.name[12:17] for file in local_files(some, str(tmp_path / "c4"))][:3] == ["00000", "00002", "00004"]


CHILD = """
import os, signal, sys
from pathlib import Path
from cwd.data import packing
from cwd.errors import UserError
from tests.published_helpers import C4, request_for
from cwd.data.building import prepare_set
source, root, processes, kind, stop = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
packing.BATCH = 100  # in this process
seen = 0
def count(*unused):
    global seen
    seen += 1
    if seen == stop:
        os.kill(os.getpid(), signal.SIGKILL)
def watch(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate", "fcntl.flock") and root in str(arguments):
        count()
if kind == "files":
    sys.addaudithook(watch)
if __name__ == "__main__":
    data = prepare_set(request_for(C4, Path(root)), source=source, processes=processes, say=lambda line: None,
                       show=count if kind == "shown" else lambda done, total: None, save_seconds=0)
    print(seen, data.fingerprint)
"""


def child(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def test_a_kill_at_any_moment_costs_nothing_and_changes_nothing(tmp_path: Path) -> None:
    """Killed again and again in one preparation, each time some file operations further, in small batches."""
    write_corpus("c4", tmp_path / "source")
    good = prepared(request_for(C4, tmp_path / "good"), tmp_path / "source")
    whole = child(tmp_path, tmp_path / "source", tmp_path / "whole", 1, "files", 0)
    operations = int(whole.stdout.split()[0])
    assert operations > 100
    kills = 0
    for stop in np.linspace(operations / 10, operations / 2, 4).astype(int):
        ended = child(tmp_path, tmp_path / "source", tmp_path / "data", 1, "files", stop)
        kills += ended.returncode == -signal.SIGKILL
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    assert kills >= 3
    data = prepared(request_for(C4, tmp_path / "data"), tmp_path / "source")
    assert content(data.folder) == content(good.folder)
    assert data.fingerprint == good.fingerprint


@pytest.mark.parametrize(("stop", "processes"), [(1, 2), (5, 1), (11, 1)])
def test_several_processes_and_a_kill_of_them_give_the_same_bytes(stop: int, processes: int, tmp_path: Path) -> None:
    write_corpus("c4", tmp_path / "source")
    good = prepared(request_for(C4, tmp_path / "good"), tmp_path / "source")
    ended = child(tmp_path, tmp_path / "source", tmp_path / "data", 3, "shown", stop)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    data = prepared(request_for(C4, tmp_path / "data"), tmp_path / "source", processes=processes)
    assert data.fingerprint == good.fingerprint
    assert content(data.folder) == content(good.folder)


def test_what_failed_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    write_corpus("c4", tmp_path / "source")
    good = prepared(request_for(C4, tmp_path / "good"), tmp_path / "source")
    path = tmp_path / "source" / FILES["c4"][2][3]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"00003-of-01024.*cannot be read after line \d+: Compressed file ended"):
            prepared(request_for(C4, tmp_path / f"data{processes}"), tmp_path / "source", processes=processes)
        path.write_bytes(whole)
        with pytest.raises(UserError, match=r"was begun from 8 files, and they are not the 8 of now .*00003-of-01024"):
            prepared(request_for(C4, tmp_path / f"data{processes}"), tmp_path / "source", processes=processes)
        path.write_bytes(whole[:-20])
    shutil.rmtree(next((tmp_path / "data1").glob("*.part")))
    path.write_bytes(whole)
    data = prepared(request_for(C4, tmp_path / "data1"), tmp_path / "source")
    assert data.fingerprint == good.fingerprint


def test_a_full_disk_is_one_line_and_what_was_saved_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus("c4", tmp_path / "source")
    good = prepared(request_for(C4, tmp_path / "good"), tmp_path / "source")
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\).*goes on") as caught:
            prepared(request_for(C4, tmp_path / "data"), tmp_path / "source")
    assert "\n" not in str(caught.value)
    data = prepared(request_for(C4, tmp_path / "data"), tmp_path / "source")
    assert content(data.folder) == content(good.folder)


def test_a_disk_that_is_too_small_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus("c4", tmp_path / "source")
    says: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(building.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"about [\d.]+ kB are needed and 1.0 kB are free; .*dataset\.shards"):
            prepared(request_for(C4, tmp_path / "data"), tmp_path / "source", says)
    assert "8 files" in says[0]
    data = prepared(request_for(C4, tmp_path / "data"), tmp_path / "source", says)
    told = int(says[-1].split("about ")[1].split(" tokens")[0].replace(",", ""))
    found = sum(data.manifest["splits"][split]["tokens"] for split in ("train", "validation"))
    assert told == pytest.approx(found, rel=0.3)


def test_a_source_without_the_files_is_told(tmp_path: Path) -> None:
    for source, message in ((tmp_path, "holds no train file of c4"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UserError, match=message):
            prepared(request_for(C4, tmp_path / "data"), source)
    write_corpus("c4", tmp_path / "source")
    with pytest.raises(UserError, match=r"dataset\.shards=7: c4 has only 6 training files"):
        prepared(request_for(Published(**vars(C4) | {"shards": 7}), tmp_path / "data"), tmp_path / "source")


def test_a_damaged_shard_is_named_and_only_it_is_made_again(tmp_path: Path) -> None:
    write_corpus("c4", tmp_path / "source")
    request = request_for(C4, tmp_path / "data")
    good = content(prepared(request, tmp_path / "source").folder)
    flip(request.folder / "train-00002.bin")
    times = {path.name: path.stat().st_mtime_ns for path in request.folder.glob("*.bin")}
    with pytest.raises(UserError, match=r"train-00002\.bin does not match its manifest; .*: the command"):
        find_set(request, "the command")
    says: list[str] = []
    prepared(request, tmp_path / "source", says)
    assert "train-00002.bin does not match its manifest; making it again" in says[0]
    assert content(request.folder) == good
    changed = [path.name for path in request.folder.glob("*.bin") if path.stat().st_mtime_ns != times[path.name]]
    assert changed == ["train-00002.bin"]


def flip(path: Path) -> None:
    """Changes one bit, and leaves the file's size and times."""
    before = path.stat()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_large_files_are_hashed_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus("c4", tmp_path / "source")
    monkeypatch.setattr(tokens, "LARGE", 100)
    request = request_for(C4, tmp_path / "data")
    prepared(request, tmp_path / "source")
    hashed: list[str] = []
    real = tokens.checksum
    monkeypatch.setattr(tokens, "checksum", lambda path: hashed.append(path.name) or real(path))  # type: ignore[func-returns-value]
    find_set(request, "")
    assert not [name for name in hashed if name.endswith(".bin")]
    flip(request.folder / "train-00001.bin")
    with pytest.raises(UserError, match=r"train-00001\.bin does not match"):
        find_set(request, "")
    assert [name for name in hashed if name.endswith(".bin")] == ["train-00001.bin"]
    shutil.copytree(request.folder, tmp_path / "copy")
    assert tokens.open_folder(tmp_path / "copy")[0] is None


def test_a_set_is_found_by_what_it_is_wherever_it_lies(tmp_path: Path) -> None:
    write_corpus("c4", tmp_path / "source")
    request = request_for(C4, tmp_path / "data")
    data = prepared(request, tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    assert find_set(request_for(C4, tmp_path / "elsewhere"), "").fingerprint == data.fingerprint
    with pytest.raises(UserError, match=r"c4 is not prepared .*: the command"):
        find_set(request, "the command")
    [made] = [path for path in (tmp_path / "elsewhere").iterdir() if path.is_dir()]
    place = str(shutil.move(made, tmp_path / "mine"))
    assert find_set(request_for(C4, tmp_path, place=place), "").fingerprint == data.fingerprint
    other = request_for(Published(**vars(C4) | {"shards": 2}), tmp_path, place=place)
    with pytest.raises(UserError, match=r"holds another set: its shards is None, and the configuration's 2"):
        find_set(other, "")


def test_what_changes_the_tokens_changes_the_folder_and_what_does_not_does_not(tmp_path: Path) -> None:
    base = request_for(C4, tmp_path)
    assert request_for(C4, tmp_path, validation_fraction=0.5).folder == base.folder  # it has files of its own
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "copy.json").write_text("{}")
    found = [
        base,
        request_for(CORPORA["dolma"], tmp_path),
        request_for(CORPORA["dolma"], tmp_path, validation_fraction=0.5),
        request_for(C4, tmp_path, tokenizer="bpe", vocab_size=300),
        request_for(C4, tmp_path, tokenizer="bpe", vocab_size=301),
        request_for(C4, tmp_path, tokenizer=str(tmp_path / "tokenizer.json")),
        request_for(Published(**vars(C4) | {"shards": 2}), tmp_path),
    ]
    assert len({request.folder for request in found}) == len(found)
    assert request_for(C4, tmp_path, tokenizer=str(tmp_path / "copy.json")).folder == found[5].folder


@pytest.mark.parametrize("tokenizer", ["bpe", "bpe_fallback"])
def test_a_vocabulary_is_trained_once_and_a_resumed_preparation_keeps_it(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus("dolma", tmp_path / "source")
    request = request_for(CORPORA["dolma"], tmp_path / "data", tokenizer=tokenizer, vocab_size=500)
    with monkeypatch.context() as patch:
        patch.setattr(building, "pack_all", lambda *unused: (_ for _ in ()).throw(UserError("stopped")))
        with pytest.raises(UserError, match="stopped"):
            prepared(request, tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(building, "load_tokenizer", lambda *unused, **options: pytest.fail("trained again"))
        data = prepared(request, tmp_path / "source")
    text = "".join(text for text in texts(FILES["dolma"][2][0]) if text.strip() and not held_out(text, 0.2))
    assert data.tokenizer().decode(data.tokens("train")[0:100_000]).startswith(text)


def test_a_damaged_vocabulary_is_trained_again(tmp_path: Path) -> None:
    write_corpus("dolma", tmp_path / "source")
    request = request_for(CORPORA["dolma"], tmp_path / "data", tokenizer="bpe", vocab_size=300)
    good = content(prepared(request, tmp_path / "source").folder)
    for damage in ("{", (request.folder / "tokenizer.json").read_text().replace('"!"', '"~!"', 1)):
        (request.folder / "tokenizer.json").write_text(damage)
        prepared(request, tmp_path / "source")
        assert content(request.folder) == good


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)


def test_train_py_names_the_command_that_prepares_and_then_finds_the_data(tmp_path: Path) -> None:
    from cwd.sweeps import compose_config
    from cwd.training.sources import load_tokens

    write_corpus("c4", tmp_path / "source")
    words = [
        "dataset=c4",
        "scale=smoke",
        "dataset.tokenizer=bytes",
        "dataset.shards=2",
        f"machine.data={tmp_path / 'd'}",
    ]
    with pytest.raises(UserError) as caught:
        load_tokens(compose_config(words), print)
    command = str(caught.value).partition("prepares it: ")[2].split()
    assert command[:3] == ["python", "scripts/prepare_data.py", "dataset=c4"]
    assert set(command[3:]) == {"dataset.tokenizer=bytes", "dataset.shards=2", f"machine.data={tmp_path / 'd'}"}
    script = str(REPOSITORY / command[1])
    ended = run(tmp_path, script, *command[2:], f"dataset.source={tmp_path / 'source'}", "--processes", "1")
    assert ended.returncode == 0, ended.stderr
    first, last = ended.stdout.strip().splitlines()
    assert "4 files" in first
    data = load_tokens(compose_config(words), print)
    assert f"{len(data.tokens('train')):,} train" in last
    assert data.fingerprint in last
    assert len(data.shards("train")) == 2
    bad = run(tmp_path, script, "dataset=c4", "dataset.source=nowhere", "dataset.tokenizer=bytes")
    assert (bad.returncode, bad.stderr) == (2, "prepare_data.py: dataset.source=nowhere: no such folder\n")
