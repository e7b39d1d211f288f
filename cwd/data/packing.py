"""One published file to token shards: streamed, and saved so often that a kill costs seconds.

    parts/<shard>.json   what is done of the file, and the length and SHA-256 of its shards at that moment
    <split>-<shard>.bin  the shards; what is longer than its record is cut before going on

The bytes depend on the file and the tokenizer alone: every document is tokenised by itself, in the file's order.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cwd.data.corpora import SPLITS
from cwd.data.published import Published, SourceFile, discard, fetch
from cwd.data.reading import Records
from cwd.data.tokenizers import Tokenizer
from cwd.data.tokens import dtype_for, locked
from cwd.errors import UserError
from cwd.files import read_json, write_json
from cwd.lock import Lock

BATCH = 1_000_000  # characters tokenised at a time
SAVE_SECONDS = 20.0


class Stopped(Exception):
    """Another part failed or the user interrupted; what is done is saved."""


@dataclass(frozen=True)
class Part:
    """One source file's share of a preparation.

    Args:
        number: of the shard, among those of its split. held_out: the share of documents that goes to validation.
        work: the folder that is being filled. save_seconds: at most so much work is lost by a kill.
    """

    corpus: Published
    file: SourceFile
    number: int
    held_out: float
    work: Path
    save_seconds: float = SAVE_SECONDS

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it has documents for."""
        return SPLITS if self.held_out else (self.file.split,)

    @property
    def journal(self) -> Path:
        """Where what is done is written down."""
        return self.work / "parts" / f"{self.file.split}-{self.number:05}.json"

    def shard(self, split: str) -> str:
        """The name of its shard of a split."""
        return f"{split}-{self.number:05}.bin"


def pack(
    part: Part, tokenizer: Tokenizer, tell: Callable[[int], None], stopped: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Packs what is not packed yet. Returns the documents, tokens, bytes of text and SHA-256 of each of its shards.

    Args:
        tell: called with the bytes of the source file that have been read so far.
        stopped: asked before each batch; when true, the work is saved and Stopped raised.

    Raises:
        UserError: the file cannot be had or read, or the disk is full. Stopped.
    """
    part.journal.parent.mkdir(parents=True, exist_ok=True)
    # A preparation that was killed may leave a process for a moment.
    with locked(part.journal.with_suffix(".lock"), _nothing) as lock:
        try:
            with _Shards(part, tokenizer, lock) as shards:
                if not shards.done:
                    path = fetch(part.corpus, part.file, part.work / "source")
                    _pack(Records(path, part.corpus.field, shards.records), shards, tokenizer, tell, stopped)
                    shards.save(done=True)
        except OSError as error:
            raise UserError(
                f"{error.filename or part.work}: cannot be written ({error.strerror}); what was saved before is "
                "intact, and the same command goes on from there"
            ) from None
        discard(part.file, part.work / "source")
        tell(part.file.size or 0)
        return shards.splits


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation. Its content with whitespace evened decides, so that two documents which
    differ in whitespace alone are on the same side.
    """
    digest = hashlib.sha256(" ".join(text.split()).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _pack(
    records: Records,
    shards: _Shards,
    tokenizer: Tokenizer,
    tell: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    saved = time.monotonic()
    for read, texts in batches(records):
        if stopped():
            shards.save()
            raise Stopped
        shards.add(read, texts, tokenizer)
        tell(records.position)
        if time.monotonic() - saved >= shards.part.save_seconds:
            shards.save()
            saved = time.monotonic()


def batches(records: Records) -> Iterator[tuple[int, list[str]]]:
    """(records read, the texts among them that are not blank), about BATCH characters at a time."""
    read, texts, characters = 0, [], 0
    for text in records:
        read += 1
        if text.strip():
            texts.append(text)
            characters += len(text)
        if characters >= BATCH or read >= BATCH:
            yield read, texts
            read, texts, characters = 0, [], 0
    if read:
        yield read, texts


class _Shards:
    """The open shards of a part, as far as they are saved. What on the disk is not what was saved begins again."""

    def __init__(self, part: Part, tokenizer: Tokenizer, lock: Lock) -> None:
        self.part, self._dtype, self._lock = part, dtype_for(tokenizer.vocab_size), lock
        self._source = [part.file.name, part.file.size]
        self._files: dict[str, BinaryIO] = {}
        state = read_json(part.journal)
        state = state if isinstance(state, dict) and state.get("source") == self._source else _nothing_yet(part)
        hashes = self._hashes_of(state)
        if any(hashes[split].hexdigest() != state["splits"][split]["sha256"] for split in part.splits):
            state = _nothing_yet(part)
            hashes = self._hashes_of(state)
        self._hashes = hashes
        self.records, self.done, self.splits = state["records"], state["done"], state["splits"]

    def __enter__(self) -> _Shards:
        for split in () if self.done else self.part.splits:
            self._files[split] = open(self._path(split), "ab")
            self._files[split].truncate(self._size(self.splits[split]))
        return self

    def __exit__(self, *unused: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk has been told of
                file.close()

    def _path(self, split: str) -> Path:
        return self.part.work / self.part.shard(split)

    def _size(self, counts: dict[str, Any]) -> int:
        return counts["tokens"] * int(self._dtype[-1])

    def _hashes_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """The hash of as much of each shard as was saved, as it is on the disk."""
        return {split: _hash_of(self._path(split), self._size(state["splits"][split])) for split in self.part.splits}

    def add(self, read: int, texts: list[str], tokenizer: Tokenizer) -> None:
        """Tokenises and appends some documents, of which the source file held `read` records."""
        self.records += read
        encoded = tokenizer.encode_batch(texts)
        self._lock.confirm()
        for text, ids in zip(texts, encoded, strict=True):
            held_out = self.part.held_out and is_held_out(text, self.part.held_out)
            split = "validation" if held_out else self.part.file.split
            content = ids.astype(self._dtype).tobytes()
            self._files[split].write(content)
            self._hashes[split].update(content)
            counts = self.splits[split]
            counts["documents"] += 1
            counts["tokens"] += len(ids)
            counts["bytes"] += len(text.encode("utf-8"))

    def save(self, done: bool = False) -> None:
        """Makes all that was added durable, and then says so."""
        self._lock.confirm()
        for split, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            self.splits[split]["sha256"] = self._hashes[split].hexdigest()
        self.done = done
        state = {"records": self.records, "done": done, "splits": self.splits, "source": self._source}
        write_json(self.part.journal, state)


def _nothing_yet(part: Part) -> dict[str, Any]:
    empty = {"documents": 0, "tokens": 0, "bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    return {"records": 0, "done": False, "splits": {split: dict(empty) for split in part.splits}}


def _hash_of(path: Path, size: int) -> Any:
    """The SHA-256, to be gone on with, of a file's first bytes: fewer, if it is shorter or not there."""
    digest = hashlib.sha256()
    with suppress(FileNotFoundError), open(path, "rb") as file:
        while size > 0 and (piece := file.read(min(size, 2**22))):
            digest.update(piece)
            size -= len(piece)
    return digest


def _nothing(line: str) -> None:
    """Waiting for a process that is about to end is not worth a line."""
