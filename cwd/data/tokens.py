"""Prepared token files: opened, checked against their manifest, and read as one sequence of ids for each split.

A small corpus has one file for each split, train.bin and validation.bin; a large one has many shards, listed in order
in the manifest. Rows are cut from the concatenation, so where one shard ends and the next begins changes no batch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cwd.data.corpora import SPLITS
from cwd.data.tokenizers import Tokenizer, open_tokenizer
from cwd.files import read_json, sha256_of, write_json
from cwd.lock import Busy, Lock

FORMAT = 1
CHECKED = "checked.json"  # what the large files looked like when their checksums were last found right
LARGE = 2**28  # bytes; smaller files are hashed on every open
OPEN_SHARDS = 128  # each mapped file holds a descriptor, and a process has about a thousand


@dataclass(frozen=True)
class TokenData:
    """A prepared folder whose files were found to match its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.manifest["vocab_size"]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on the tokens and the tokenizer alone, not on paths or on how they came to be."""
        return hash_of([self.manifest["tokenizer"]["fingerprint"], *map(self._digest, SPLITS)])[:16]

    def _digest(self, split: str) -> str:
        digests = [self.manifest["files"][name]["sha256"] for name in self.shards(split)]
        return digests[0] if len(digests) == 1 else hash_of(digests)

    def shards(self, split: str) -> list[str]:
        """The names of a split's files, in order."""
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return self.manifest["splits"][split].get("shards", [f"{split}.bin"])

    def tokens(self, split: str) -> np.ndarray | TokenShards:
        """The ids of "train" or "validation": (length,) little-endian uint8, uint16 or uint32, read-only and not in
        memory. What several shards hold has a length and slices, and nothing else of an array.
        """
        paths = [self.folder / name for name in self.shards(split)]
        if len(paths) == 1:
            return np.memmap(paths[0], dtype=self.manifest["dtype"], mode="r")
        return TokenShards(paths, self.manifest["dtype"])

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of text for each token: turns a loss per token into one per byte, which tokenizers share."""
        return self.manifest["splits"][split]["bytes"] / self.manifest["splits"][split]["tokens"]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the ids came from, loaded from this folder alone."""
        return open_tokenizer(self.manifest["tokenizer"]["spec"], self.folder)


class TokenShards:
    """Several token files as one sequence, mapped as they are needed.

    Args:
        paths: the files in order; an empty one adds nothing. dtype: of their ids.
    """

    def __init__(self, paths: list[Path], dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        sizes = [path.stat().st_size // self.dtype.itemsize for path in paths]
        self._paths = [path for path, size in zip(paths, sizes, strict=True) if size]
        self._ends = np.cumsum([size for size in sizes if size], dtype=np.int64)
        self._mapped = lru_cache(maxsize=OPEN_SHARDS)(lambda path: np.memmap(path, dtype=self.dtype, mode="r"))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        """The ids [start, stop), copied; the step is 1."""
        start, stop, _ = part.indices(len(self))
        pieces = [np.empty(0, self.dtype)]
        for shard in range(int(np.searchsorted(self._ends, start, side="right")), len(self._paths)):
            first = int(self._ends[shard - 1]) if shard else 0
            if first >= stop:
                break
            pieces.append(self._mapped(self._paths[shard])[max(start - first, 0) : stop - first])
        return np.concatenate(pieces)


def open_folder(folder: Path, key: str | None = None) -> tuple[TokenData | None, str]:
    """The folder's data when every file matches the manifest, or else what is wrong (nothing, when it is not there).

    A file of LARGE bytes or more is hashed once, and again when its size, times or inode are no more what they were.

    Args:
        key: what the manifest must say of itself, if given.
    """
    if not folder.exists():
        return None, ""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        content = {name: value for name, value in manifest.items() if name != "checksum"}
        right = manifest["checksum"] == hash_of(content) and manifest["format"] == FORMAT
        if not right or manifest["key"] != (key or manifest["key"]):
            return None, f"{folder}/manifest.json was altered"
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None, f"{folder}/manifest.json cannot be read"
    damage = damaged(folder, manifest["files"])
    return (None, damage[0][1]) if damage else (TokenData(folder, manifest), "")


def damaged(folder: Path, files: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(name, what is wrong) of each file that is not what the manifest says."""
    known = read_json(folder / CHECKED)
    known = known if isinstance(known, dict) else {}
    seen: dict[str, list[Any]] = {}  # of large files, before they are read

    def check(name: str) -> str:
        path, expected = folder / name, files[name]
        try:
            # The size first: a truncated file of many gigabytes need not be hashed to be refused.
            if path.stat().st_size != expected["size"]:
                return f"{path} does not match its manifest"
            if expected["size"] >= LARGE:
                seen[name] = [expected["sha256"], *_look(path)]
                if known.get(name) == seen[name]:
                    return ""
            return "" if checksum(path) == expected else f"{path} does not match its manifest"
        except OSError:
            return f"{path} cannot be read"

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing leaves the interpreter to others
        found = [(name, wrong) for name, wrong in zip(files, threads.map(check, files), strict=True) if wrong]
    if seen != known and not found:
        with suppress(OSError):  # a folder that others own is read as well without
            write_json(folder / CHECKED, seen)
    return found


def _look(path: Path) -> list[int]:
    """What changes when a file is written, replaced or copied, whatever its times are set to."""
    info = path.stat()
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with its own checksum."""
    content = json.dumps(manifest | {"checksum": hash_of(manifest)}, indent=2)
    (folder / "manifest.json").write_bytes(content.encode())


def dtype_for(vocab_size: int) -> str:
    """The smallest unsigned integer that holds every id."""
    return "<u1" if vocab_size <= 2**8 else "<u2" if vocab_size <= 2**16 else "<u4"


def checksum(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def hash_of(value: Any) -> str:
    """The hash of something JSON-able, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(path: Path, progress: Callable[[str], None]) -> Iterator[Lock]:
    """Holds a lock while data is prepared, waiting for it and saying so. Its `confirm` is asked before what others see
    is written.
    """
    lock = Lock(path, f"data: {path.with_suffix('')}")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.held(0.0))
        except Busy:
            progress("data: waiting for another process that prepares the same data")
            stack.enter_context(lock.held(math.inf))
        yield lock
