"""What a fault did to each run of a sweep, as a person reads it, and whether it is as it must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwd.faults.runs import NOT_BEGUN, Seen, look, outcomes


@dataclass
class Told:
    """The runs before the fault, after it and in the end, by their names."""

    title: str
    before: dict[str, Seen]
    after: dict[str, Seen]
    end: dict[str, Seen]
    same: dict[str, bool]  # metrics and weights are those of the undisturbed run
    notes: list[str] = field(default_factory=list)
    how_same: str = "same bits as undisturbed"
    missed: str = ""  # what was to be shown and was not: nothing is proved then

    @property
    def is_well(self) -> bool:
        """Whether the fault has struck, and all runs are done and the same as the undisturbed ones."""
        return bool(self.same) and set(self.end) == set(self.same) and all(self.same.values()) and not self.missed

    def __str__(self) -> str:
        lines = [self.title]
        for name, end in self.end.items():
            before, after = self.before.get(name, NOT_BEGUN), self.after.get(name, NOT_BEGUN)
            bits = self.how_same if self.same.get(name) else "NOT AS UNDISTURBED"
            starts = f"started {end.starts} times" if end.starts != 1 else "started once"
            lines.append(f"  {name:<16} {before!s:<22} -> {after!s:<24} -> {end}, {starts}, {bits}")
        missed = [f"NOT SHOWN: {self.missed}"] if self.missed else []
        return "\n".join([*lines, *(f"  {note}" for note in (*self.notes, *missed))])


def tell(
    title: str, folder: Path, before: dict[str, Seen], after: dict[str, Seen], expected: dict[str, dict[str, Any]]
) -> Told:
    """What has become of the sweep in a folder. `expected`: the outcomes of the same sweep left alone."""
    found = outcomes(folder / "runs")
    same = {name: found.get(name) == one for name, one in expected.items()}
    return Told(title, before, after, look(folder / "runs"), same)
