"""A sweep's runs, found among the records by what they are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.runs import Record, run_key

FINGERPRINT = re.compile(rb'"fingerprint":\s*"([^"]+)"')

THEORY = re.compile(rb'"theory":\s*\{')


@dataclass(frozen=True)
class Cell:
    """One run that a sweep asks for, and its record if there is one."""

    identity: dict[str, Any]
    record: Record | None
    left_out: int = 0  # records of this configuration that were made from other data

    @cached_property
    def state(self) -> str:
        """The record's state, "missing" without one."""
        if self.record is None:
            return "missing"
        return "done" if self.summary else self.record.status["state"]

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The result of a run that is done."""
        return self.record.summary if self.record else None

    @property
    def loss(self) -> float | None:
        """The final loss of a run that is done."""
        return self.summary["loss"] if self.summary else None


class RunsFolder:
    """A runs folder as it is at one moment: its keys, and the data that its runs were made from.

    A run's key is the hash of its identity and its data, so a wanted run is looked up, not searched for.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys = {path.parent.name for path in root.glob("*/config.json")} if root.is_dir() else set()

    @cached_property
    def fingerprints(self) -> list[str]:
        """Of the data of all runs, in order."""
        found = {match[1] for text in self._texts.values() if (match := FINGERPRINT.search(text))}
        return sorted(one.decode() for one in found)

    @cached_property
    def theory(self) -> list[Record]:
        """The records of theory's checks, by key."""
        keys = [key for key in sorted(self.keys) if THEORY.search(self._texts[key])]
        return [record for record in (Record(self.root / key) for key in keys) if record.description]

    @cached_property
    def _texts(self) -> dict[str, bytes]:
        """Each run's config.json, unread."""
        return {key: _read(self.root / key / "config.json") for key in self.keys}

    def keys_of(self, identity: dict[str, Any]) -> dict[str, str]:
        """Fingerprint -> key, of the runs with this identity."""
        asked = {data: run_key(identity, data) for data in self.fingerprints}
        return {data: key for data, key in asked.items() if key in self.keys}


def find_cells(identities: Iterable[dict[str, Any]], runs: Path | RunsFolder) -> list[Cell]:
    """A cell for each identity. Records made from other data than the most common one among them are left out.

    A record of the same configuration but other data (another version of Python has another standard library) is
    another experiment, and a table must not mix them; each cell says how many it left out. A record of another
    format is left out too: its key is another.
    """
    folder = RunsFolder(runs) if isinstance(runs, Path) else runs
    wanted = [(identity, folder.keys_of(identity)) for identity in identities]
    seen: dict[Any, list[str]] = {}
    for identity, keys in wanted:
        seen.setdefault(_base(identity), []).extend(keys)
    data = {base: _most_common(fingerprints) for base, fingerprints in seen.items()}
    return [_cell(identity, keys, data[_base(identity)], folder.root) for identity, keys in wanted]


def _cell(identity: dict[str, Any], keys: dict[str, str], data: str, root: Path) -> Cell:
    return Cell(identity, Record(root / keys[data]) if data in keys else None, len(keys) - (data in keys))


def _base(identity: dict[str, Any]) -> Any:
    """The model that a fine-tuning goes on from, whose tokenizer and weights are a part of its data."""
    return identity.get("model", {}).get("source")


def check_paired(a: Cell, b: Cell) -> None:
    """Refuses two runs whose initial weights or batches differ.

    Raises:
        UserError: they are no pair.
    """
    first, second = (cell.summary["pairing"] if cell.summary else None for cell in (a, b))
    if first is None or first != second:
        keys = " and ".join(cell.record.key if cell.record else "?" for cell in (a, b))
        raise UserError(
            f"runs {keys}: not a pair, their initial weights or batches differ; train both again on one machine"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _most_common(values: list[str]) -> str:
    return max(sorted(set(values)), key=values.count) if values else ""
