"""Theory's checks as evidence: a claim reads a field of the summary that ``python scripts/theory.py NAME`` recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cwd.evidence.artifact_files import Artifact, Claim
from cwd.evidence.claims import Finding
from cwd.evidence.document import Figure, Panel, Series
from cwd.evidence.grid import RunsFolder
from cwd.runs import Record, read_metrics


@dataclass(frozen=True)
class Check:
    """A check that an artifact needs, and its newest record that is done, if there is one."""

    name: str
    record: Record | None

    def read(self, path: str) -> Any:
        """A field of the summary, dotted; None without a record or without the field."""
        value: Any = self.record.summary if self.record else None
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def find_checks(artifact: Artifact, runs: RunsFolder) -> list[Check]:
    """The artifact's checks with their records."""
    if not artifact.checks:
        return []
    done = [record for record in runs.theory if record.summary]
    newest = sorted(done, key=lambda record: (record.folder / "summary.json").stat().st_mtime)
    by_name = {record.description["identity"]["theory"].get("name"): record for record in newest}
    return [Check(name, by_name.get(name)) for name in artifact.checks]


def judge_checks(artifact: Artifact, checks: Sequence[Check]) -> list[Finding]:
    """A finding for each claim on a check: supported if the field lies where the claim says, contradicted if not.

    What a check computes has no seeds; its own tolerances are in its record.
    """
    by_name = {check.name: check for check in checks}
    return [_judge(claim, by_name[str(claim.check)]) for claim in artifact.claims if claim.test == "check"]


def _judge(claim: Claim, check: Check) -> Finding:
    value = check.read(str(claim.field))
    if check.record is None or value is None:
        note = "" if check.record is None else f"the record of {check.name} has no {claim.field}"
        return Finding(claim, {}, notes=(note,) if note else (), verdict="incomplete")
    low, high = claim.bound[0], claim.bound[-1]
    right = {"below": value < low, "above": value > low, "within": low <= value <= high}[claim.expect]
    return Finding(
        claim, {}, measured=value, runs={0: (check.record.key,)}, verdict="supported" if right else "contradicted"
    )


def paths_figure(artifact: Artifact, checks: Sequence[Check]) -> list[Figure]:
    """The paths in the plane that the checks recorded, as lines of kind "path" with ``label``, ``x`` and ``y``; []
    where the layout has none.
    """
    if not artifact.layout.paths:
        return []
    panels = []
    for check in checks:
        paths: dict[str, list[tuple[float, float]]] = {}
        for line in read_metrics(check.record.metrics_file, "path") if check.record else []:
            paths.setdefault(line["label"], []).append((line["x"], line["y"]))
        series = tuple(
            Series(label, tuple(x for x, _ in path), tuple(y for _, y in path)) for label, path in paths.items()
        )
        panels.append(Panel(check.name, "x", "y", series))
    return [Figure(artifact.title, tuple(panels), 2)]
