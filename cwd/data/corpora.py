"""Where text comes from (the running Python's standard library, or the user's own files) and how it is split.

A corpus lists its files without reading them (so that unchanged data is recognised from sizes and times alone), yields
its documents one at a time, and describes itself without naming a path of this machine.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
import sysconfig
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from cwd.data.reading import decode, raw_lines, text_of
from cwd.errors import UserError, nearest

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".jsonl.gz")
SPLITTABLE = (".txt", ".md")
NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# Written when Python is built and full of that machine's paths: the same Python elsewhere must give the same corpus.
BUILD_FOLDER, BUILD_FILE = "config-", "_sysconfigdata"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Document:
    """One text and, for messages only, where it came from."""

    source: str
    text: str


class Corpus(Protocol):
    """What preparation needs to know of a source of text."""

    def files(self) -> list[Path]:
        """Every file the documents come from: absolute, sorted, each once."""

    def documents(self) -> Iterator[Document]:
        """The documents, file by file; those that are empty or only whitespace are dropped."""

    def spec(self) -> dict[str, Any]:
        """What else than their content says how documents are made: JSON-able, no machine paths."""


class PythonSource:
    """The standard library's *.py of the Python that runs this, without tests: about 12 MB that every machine already
    has.

    Raises:
        UserError: this Python has no standard library as source files (a zip, or bytecode only).
    """

    def __init__(self) -> None:
        self.folder = Path(sysconfig.get_path("stdlib"))

    def files(self) -> list[Path]:
        """The files, sorted, without reading them."""
        found: list[Path] = []
        for folder, subfolders, names in os.walk(self.folder):
            subfolders[:] = [
                name for name in subfolders if name not in NOT_SOURCE and not name.startswith(BUILD_FOLDER)
            ]
            found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(BUILD_FILE)]
        if not found:
            raise UserError(
                f"this Python ({sys.executable}) has no standard library source in {self.folder}; "
                "use a Python installed with its .py files, or train on text files of your own"
            )
        return sorted(found)

    def documents(self) -> Iterator[Document]:
        """Every document, in a fixed order."""
        for path in self.files():
            text = decode(_read(path), path)
            if text.strip():
                yield Document(path.relative_to(self.folder).as_posix(), text)

    def spec(self) -> dict[str, Any]:
        """What takes part in the fingerprint; no paths."""
        return {"kind": "python-source", "python": ".".join(map(str, sys.version_info[:3]))}


class TextFiles:
    """The user's files: .txt, .md and .py are one document each, .jsonl and .jsonl.gz one for each line.

    Args:
        files: files, folders (searched recursively) or globs; `~` and paths relative to the working folder are fine.
        field: the key of a JSON line that holds the text.
        separator: cuts a .txt or .md file into several documents (the separator itself belongs to none).

    Raises:
        UserError: nothing given or matched, a suffix that is not allowed, and later, from `documents`, content that is
            not what the suffix promises, with the file and the line or byte.
    """

    def __init__(self, files: list[str], field: str = "text", separator: str | None = None) -> None:
        if not files:
            raise UserError("dataset.files is empty; give files, folders or globs")
        if separator == "":
            raise UserError("dataset.separator is empty; give the text between two documents, or null for none")
        self.patterns, self.field, self.separator = list(files), field, separator

    def files(self) -> list[Path]:
        """The files, sorted, without reading them."""
        return sorted({path for pattern in self.patterns for path in _match(pattern)})

    def documents(self) -> Iterator[Document]:
        """Every document, in a fixed order."""
        for path in self.files():
            for document in self._lines(path) if ".jsonl" in _suffix(path) else self._pieces(path):
                if document.text.strip():
                    yield document

    def spec(self) -> dict[str, Any]:
        """What takes part in the fingerprint; no paths."""
        return {"kind": "text-files", "field": self.field, "separator": self.separator}

    def _pieces(self, path: Path) -> Iterator[Document]:
        text = decode(_read(path), path)
        if self.separator is None or _suffix(path) not in SPLITTABLE:
            yield Document(str(path), text)
            return
        for number, piece in enumerate(text.split(self.separator), 1):
            yield Document(f"{path}#{number}", piece)

    def _lines(self, path: Path) -> Iterator[Document]:
        offset = 0
        for number, raw in raw_lines(path):
            line = decode(raw, path, offset, f"line {number}, ")
            offset += len(raw)
            if line.strip():
                yield Document(f"{path}:{number}", text_of(line, self.field, f"{path}, line {number}"))


@dataclass(frozen=True)
class Division:
    """Which documents are kept, by the hash of their content, on which side and in which order; none of the text."""

    documents: dict[str, list[str]]
    bytes: dict[str, int]
    duplicates: int
    fingerprint: str


def divide(corpus: Corpus, validation_fraction: float) -> Division:
    """Read everything once, and hold out whole documents for validation.

    Documents that differ in whitespace alone are one document, so none can be on both sides. The order is that of the
    hashes of their normalised content, and validation is the head of it: neither file names nor their order matter to
    the result.

    Raises:
        UserError: fewer than two distinct documents.
    """
    found: dict[str, tuple[str, int]] = {}
    seen = 0
    for document in corpus.documents():
        seen += 1
        content = document.text.encode("utf-8")
        same = _sha256(" ".join(document.text.split()).encode("utf-8"))
        version = (_sha256(content), len(content))
        found[same] = min(found.get(same, version), version)  # of several spellings, always the same one
    if len(found) < 2:
        raise UserError(
            f"the dataset has {len(found)} distinct documents, and train and validation need one each; "
            "give more files, or cut one into documents with dataset.separator"
        )
    order = [found[same] for same in sorted(found)]
    cut = _cut([size for _, size in order], validation_fraction)
    sides = {"train": order[cut:], "validation": order[:cut]}
    return Division(
        documents={split: [digest for digest, _ in sides[split]] for split in SPLITS},
        bytes={split: sum(size for _, size in sides[split]) for split in SPLITS},
        duplicates=seen - len(found),
        fingerprint=_sha256(json.dumps([corpus.spec(), order], sort_keys=True).encode()),
    )


def texts(corpus: Corpus, wanted: Iterable[str]) -> Iterator[tuple[str, str]]:
    """One more pass: (content hash, text) of each wanted document, once.

    Raises:
        UserError: a wanted document is not there any more.
    """
    missing = set(wanted)
    for document in corpus.documents():
        digest = _sha256(document.text.encode("utf-8"))
        if digest in missing:
            missing.remove(digest)
            yield digest, document.text
    if missing:
        raise UserError("the dataset's files changed while they were read; run again when nothing writes them")


def _cut(sizes: list[int], fraction: float) -> int:
    """How many leading documents reach the fraction of the bytes, leaving at least one on each side."""
    reached = list(accumulate(sizes))
    return min(bisect_left(reached, fraction * reached[-1]) + 1, len(sizes) - 1)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _suffix(path: Path) -> str:
    """The allowed suffix of a name, or the empty string."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def _match(pattern: str) -> list[Path]:
    """The files one pattern stands for, resolved, so that a file reached by two patterns or a link is one file."""
    path = Path(pattern).expanduser()
    if path.is_file():
        if not _suffix(path):
            raise UserError(f"dataset.files: {pattern!r} is none of the allowed kinds: {', '.join(SUFFIXES)}")
        return [path.resolve()]
    roots = [path] if path.is_dir() else [Path(name) for name in glob.glob(str(path), recursive=True)]
    if not roots:
        raise UserError(f"dataset.files: {pattern!r} matches nothing{_nearest_existing(path)}")
    inside = [file for root in roots for file in (root.rglob("*") if root.is_dir() else [root])]
    found = [file.resolve() for file in inside if _suffix(file) and file.is_file()]
    if not found:
        raise UserError(f"dataset.files: {pattern!r} holds no file of the allowed kinds: {', '.join(SUFFIXES)}")
    return found


def _nearest_existing(path: Path) -> str:
    """A hint: the name that exists and is most like the first part of the path that does not."""
    path = path.absolute()
    while not path.parent.is_dir():
        path = path.parent
    try:
        siblings = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    return nearest(path.name, siblings) or f" (looked in {path.parent})"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
