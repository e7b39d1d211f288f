"""A sweep's runs, found among the records by what they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.runs import Record, all_records
from cwd.runs.record import FORMAT


@dataclass(frozen=True)
class Cell:
    """One run that a sweep asks for, and its record if there is one."""

    identity: dict[str, Any]
    record: Record | None
    left_out: int = 0  # records of this configuration that were made from other data

    @property
    def state(self) -> str:
        """The record's state, "missing" without one."""
        return self.record.status["state"] if self.record else "missing"

    @property
    def loss(self) -> float | None:
        """The final loss of a run that is done."""
        summary = self.record.summary if self.record else None
        return summary["loss"] if summary else None


def find_cells(identities: Iterable[dict[str, Any]], root: Path) -> list[Cell]:
    """A cell for each identity. Records made from other data than the most common one among them are left out.

    A record of the same configuration but other data (another version of Python has another standard library) is
    another experiment, and a table must not mix them; each cell says how many it left out. A record of another
    format is left out too.
    """
    wanted = list(identities)
    found: dict[str, list[Record]] = {}
    for record in all_records(root):
        if record.description.get("format") == FORMAT:
            found.setdefault(_canonical(record.description["identity"]), []).append(record)
    candidates = [record for identity in wanted for record in found.get(_canonical(identity), [])]
    data = _most_common([record.description["data"]["fingerprint"] for record in candidates])
    chosen = {
        _canonical(r.description["identity"]): r for r in candidates if r.description["data"]["fingerprint"] == data
    }
    return [
        Cell(identity, chosen.get(key), len(found.get(key, [])) - (key in chosen))
        for identity in wanted
        for key in [_canonical(identity)]
    ]


def check_paired(a: Cell, b: Cell) -> None:
    """Refuses two runs whose initial weights or batches differ.

    Raises:
        UserError: they are no pair.
    """
    first, second = (cell.record.summary["pairing"] if cell.record and cell.record.summary else None for cell in (a, b))
    if first is None or first != second:
        keys = " and ".join(cell.record.key if cell.record else "?" for cell in (a, b))
        raise UserError(
            f"runs {keys}: not a pair, their initial weights or batches differ; train both again on one machine"
        )


def _most_common(values: list[str]) -> str | None:
    return max(sorted(set(values)), key=values.count) if values else None


def _canonical(identity: Any) -> str:
    return json.dumps(identity, sort_keys=True)
