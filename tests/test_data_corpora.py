"""Where text comes from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cwd.data.corpora import PythonSource, TextFiles
from cwd.errors import UserError
from tests.data_helpers import refused


def test_the_standard_library_is_there_without_its_tests() -> None:
    corpus = PythonSource()
    documents = {document.source: document.text for document in corpus.documents()}
    assert documents["json/decoder.py"] == Path(json.decoder.__file__).read_text()
    forbidden = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not [name for name in documents if forbidden & set(Path(name).parts) or not name.endswith(".py")]
    assert sum(map(len, documents.values())) > 5_000_000
    assert str(corpus.folder) not in json.dumps(corpus.spec())


def test_a_python_without_its_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(UserError, match=r"no standard library source in .*python311\.zip"):
        list(PythonSource().documents())


def test_files_folders_globs_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "deep/er/b.md", "deep/c.py", "deep/ignored.csv", "d[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "deep")

    def names(*files: str) -> list[str]:
        return [document.text for document in TextFiles(list(files)).documents()]

    assert names("~/a.txt", "../a.txt", "../*.txt") == ["a.txt", "d[1].txt"]
    assert names(".") == names("../deep") == ["deep/c.py", "deep/er/b.md"]
    assert names("~/**/*.md") == ["deep/er/b.md"]
    assert names("../d[1].txt") == ["d[1].txt"]


def test_a_separator_cuts_text_and_empty_documents_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\n---two é---\n ---".encode())
    (tmp_path / "b.py").write_text("x = 1 --- 2")
    (tmp_path / "c.jsonl").write_text('\n{"body": ""}\n{"body": "x---y", "text": 3}\n')
    texts = [document.text for document in TextFiles([str(tmp_path)], "body", "---").documents()]
    assert texts == ["one\r\n", "two é", "x = 1 --- 2", "x---y"]
    assert "separator" in refused([str(tmp_path)], separator="")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"texts": "a"}', "lacks the field 'text' (nearest: 'texts')"),
        (b'{"body": "a"}', "lacks the field 'text' (it has: 'body')"),
        (b'{"text": null}', "the field 'text' is null"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "byte 27 is not UTF-8"),
    ],
)
def test_a_wrong_json_line_is_named_by_file_and_number(tmp_path: Path, suffix: str, line: bytes, message: str) -> None:
    path = tmp_path / f"a{suffix}"
    content = b'{"text": "good"}\n' + line + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    said = refused([str(path)])
    assert str(path) in said
    assert "line 2" in said
    assert message in said


def test_undecodable_text_is_named_by_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"12345\xff")
    assert "a.txt: byte 5 is not UTF-8" in refused([str(tmp_path)])


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "good"}\n' * 1000)[:-10])
    assert "a.jsonl.gz cannot be read" in refused([str(tmp_path)])


def test_what_matches_nothing_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    assert "'shakespeare'" in refused([f"{tmp_path}/shakespear"])
    assert "'shakespeare'" in refused([f"{tmp_path}/shakespear/hamlet.txt"])
    assert "matches nothing" in refused([f"{tmp_path}/*.nothing"])
    for kind in (refused([f"{tmp_path}/table.csv"]), refused([f"{tmp_path}/*.csv"]), refused([f"{tmp_path}"])):
        assert ".txt, .md, .py, .jsonl, .jsonl.gz" in kind
    assert "dataset.files is empty" in refused([])
