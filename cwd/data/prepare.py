"""Preparing a small corpus: documents tokenised, split and concatenated in memory, into one file for each split.

    root/<key>/              train.bin, validation.bin, manifest.json, the tokenizer's files; the key hashes the content
    root/<key>.lock          held while that folder is built, with <key>.lock.<n>: see cwd.lock
    root/<key>*.tmp          what is being built; nothing when its lock is free, and then removed
    root/index-<hash>.json   the size and time of every source file at the last look, and the key they led to

A folder appears by one rename, after its content is on disk, so whatever bears a key was once complete; what happened
to it since is told by the checksums.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cwd.data.corpora import SPLITS, Corpus, Division, divide, texts
from cwd.data.tokenizers import TRAINED, Tokenizer, load_tokenizer, tokenizer_files
from cwd.data.tokens import (
    FORMAT,
    TokenData,
    checksum,
    dtype_for,
    hash_of,
    locked,
    open_folder,
    write_manifest,
)
from cwd.errors import UserError
from cwd.files import sync
from cwd.lock import Busy, Lock

OURS = re.compile(r"[0-9a-f]{16}(\.old|\.index)?\.tmp")  # the temporary names made here; others are not ours to touch
BATCH_CHARACTERS = 2_000_000  # text tokenised at a time
Progress = Callable[[str], None]


def prepare(
    corpus: Corpus,
    *,
    tokenizer: str,
    vocab_size: int | None,
    validation_fraction: float,
    root: Path,
    progress: Progress,
) -> TokenData:
    """The corpus as token files: found when they are there and whole, made when not. Safe to call from many processes.

    Args:
        tokenizer, vocab_size: as `load_tokenizer` takes them; one of TRAINED is trained on the training split.
        validation_fraction: the share of the bytes, strictly between 0 and 1, to hold out by whole documents.
        root: where prepared folders live. progress: called with one line for each thing worth telling.

    Raises:
        UserError: the source, the tokenizer or the fraction is not usable, or `root` cannot be written.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation_fraction must be between 0 and 1, both excluded; got {validation_fraction}")
    root = Path(root).expanduser().absolute()
    state = _look([*corpus.files(), *tokenizer_files(tokenizer)])
    request = [FORMAT, corpus.spec(), tokenizer, vocab_size, validation_fraction, [path for path, _, _ in state]]
    index = root / f"index-{hash_of(request)[:16]}.json"
    _sweep(root)
    data = _recall(index, state)
    if data is not None:
        return data
    division = divide(corpus, validation_fraction)
    loaded = None if tokenizer in TRAINED else load_tokenizer(tokenizer, vocab_size, folder=root)
    ids = loaded.fingerprint() if loaded else [tokenizer, vocab_size]  # what is trained follows from the text
    key = hash_of([FORMAT, division.fingerprint, validation_fraction, ids])[:16]
    make_root(root)
    with locked(root / f"{key}.lock", progress) as lock:
        data, damage = open_folder(root / key, key)
        if data is None:
            if damage:
                progress(f"data: {damage}; building it again from the source")
            loaded = loaded or _train(tokenizer, vocab_size, corpus, division, progress)
            work = _gone(root / f"{key}.tmp")
            try:
                _build(work, corpus, division, loaded, tokenizer, progress)
            except OSError:  # a full disk: what is half made must not keep it full
                _gone(work)
                raise
            lock.confirm()
            _publish(work, root / key)
            data, damage = open_folder(root / key, key)
            if data is None:  # a disk that loses data should say so here and not in a loss curve
                raise UserError(f"{damage} right after it was written; check the disk")
        # Stated with what was seen before reading: a file that changed meanwhile will not match, and is read again.
        # Its temporary name is one of this key, which its lock protects.
        _write(root / f"{key}.index.tmp", [json.dumps({"key": key, "files": state}).encode()])
        os.replace(root / f"{key}.index.tmp", index)
    return data


def _train(spec: str, vocab_size: int | None, corpus: Corpus, division: Division, progress: Progress) -> Tokenizer:
    progress(f"data: training {spec} with {vocab_size} ids on {division.bytes['train']:,} bytes")
    tokenizer = load_tokenizer(spec, vocab_size, (text for _, text in texts(corpus, division.documents["train"])))
    if tokenizer.vocab_size != vocab_size:
        progress(f"data: the text has too few distinct pairs: {tokenizer.vocab_size} ids instead of {vocab_size}")
    return tokenizer


def _build(work: Path, corpus: Corpus, division: Division, tokenizer: Tokenizer, spec: str, progress: Progress) -> None:
    """Fill a temporary folder and see it to the disk."""
    progress(f"data: tokenising {sum(division.bytes.values()):,} bytes with {spec}")
    size = tokenizer.vocab_size
    dtype = dtype_for(size)
    encoded = {
        digest: ids.astype(dtype)
        for batch in _batches(texts(corpus, division.documents["train"] + division.documents["validation"]))
        for digest, ids in zip(batch, tokenizer.encode_batch(list(batch.values())), strict=True)
    }
    work.mkdir()
    splits = {}
    for split in SPLITS:
        pieces = [encoded.pop(digest) for digest in division.documents[split]]
        count = sum(map(len, pieces))
        if count == 0:
            raise UserError(f"the {split} split has no tokens: tokenizer {spec} gives none for its text")
        _write(work / f"{split}.bin", (piece.tobytes() for piece in pieces))
        splits[split] = {"documents": len(pieces), "tokens": count, "bytes": division.bytes[split]}
    tokenizer.save(work)
    manifest = {
        "format": FORMAT,
        "key": work.stem,
        "source": division.fingerprint,
        "tokenizer": {"spec": spec, "fingerprint": tokenizer.fingerprint()},
        "vocab_size": size,
        "dtype": dtype,
        "splits": splits,
        "duplicates_removed": division.duplicates,
        "files": {path.name: checksum(path) for path in sorted(work.iterdir())},
    }
    write_manifest(work, manifest)
    for path in [*work.iterdir(), work]:
        sync(path)
    counts = ", ".join(f"{splits[split]['tokens']:,} {split}" for split in SPLITS)
    progress(f"data: {counts} tokens in {work.with_suffix('')}")


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """The texts by their hash, some megabytes at a time: enough to keep a tokenizer's threads busy."""
    batch: dict[str, str] = {}
    characters = 0
    for digest, text in texts:
        batch[digest] = text
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = {}, 0
    if batch:
        yield batch


def _publish(work: Path, folder: Path) -> None:
    """Put the finished folder in its place; one that is there is damaged, and readers who have it open keep their
    files.
    """
    old = _gone(folder.with_suffix(".old.tmp"))
    if folder.exists():
        os.rename(folder, old)
    os.rename(work, folder)
    sync(folder.parent)
    _gone(old)


def _look(files: Iterable[Path]) -> list[list[Any]]:
    """[path, size, mtime_ns] of each file: what is compared to tell that nothing changed, without reading."""
    try:
        return [[str(path), info.st_size, info.st_mtime_ns] for path in files for info in [path.stat()]]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _recall(index: Path, state: list[list[Any]]) -> TokenData | None:
    """The folder this same request led to, if no source file changed since and the folder is whole."""
    try:
        known = json.loads(index.read_bytes())
        return open_folder(index.parent / known["key"], known["key"])[0] if known["files"] == state else None
    except (OSError, ValueError, LookupError, TypeError):
        return None  # no index, or a broken one: reading the source tells as well


def _sweep(root: Path) -> None:
    """Remove what preparations that were killed left behind: what is temporary and no longer locked."""
    for path in root.glob("*.tmp"):
        if not OURS.fullmatch(path.name):
            continue
        # A root that others own is theirs to clean, and no less good to read.
        lock = Lock(root / f"{path.name.split('.')[0]}.lock", "data")
        with suppress(OSError, Busy), lock.held(0.0):
            _gone(path)


def make_root(root: Path) -> None:
    """The folder of prepared data. Raises UserError: it cannot be made, or not be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the data folder {root} cannot be made: {error.strerror}") from None
    if not os.access(root, os.W_OK):
        raise UserError(f"the data folder {root} cannot be written")


def _gone(path: Path) -> Path:
    """The path, with nothing there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with open(path, "wb") as handle:
        handle.writelines(pieces)
