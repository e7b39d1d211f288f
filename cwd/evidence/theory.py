"""Theory's checks as evidence: a claim reads fields of the summaries that ``scripts/theory.py NAME`` recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from cwd.evidence.artifact_files import Artifact, Claim
from cwd.evidence.claims import Finding
from cwd.evidence.document import Figure, Panel, Series
from cwd.evidence.grid import RunsFolder
from cwd.runs import Record, read_metrics

STEP = re.compile(r"(?P<name>[^.\[]+)(?:\[(?P<key>\w+)=(?P<value>[^]]*)\])?")
DECAYS = {"none": "Adam", "decoupled": "AdamW", "cautious": "Adam + CWD"}


@dataclass(frozen=True)
class Check:
    """A check that an artifact needs, and its newest record that is done, if there is one."""

    name: str
    record: Record | None

    @property
    def summary(self) -> dict[str, Any]:
        """What it found; {} without a record."""
        return (self.record.summary if self.record else None) or {}


def find_checks(artifact: Artifact, runs: RunsFolder) -> list[Check]:
    """The artifact's checks with their records."""
    if not artifact.checks:
        return []
    done = [record for record in runs.theory if record.summary]
    newest = sorted(done, key=lambda record: (record.folder / "summary.json").stat().st_mtime)
    by_name = {record.description["identity"]["theory"].get("check"): record for record in newest}
    return [Check(name, by_name.get(name)) for name in artifact.checks]


def judge_checks(artifact: Artifact, checks: Sequence[Check]) -> list[Finding]:
    """A finding for each claim and each check that it is about: supported if every value of the field lies where the
    claim says, contradicted if one does not.

    What a check computes has no seeds here; its own intervals and tolerances are in its record, and a claim's bound is
    in the artifact's file.
    """
    found = []
    for claim in artifact.claims:
        mine = [check for check in checks if claim.test == "check" and fnmatchcase(check.name, str(claim.check))]
        found += [_judge(claim, check) for check in mine]
    return found


def _judge(claim: Claim, check: Check) -> Finding:
    where = {"check": check.name}
    if check.record is None:
        return Finding(claim, where, verdict="incomplete")
    values = list(select(check.summary, str(claim.field)))
    if not values:
        note = f"the record of {check.name} has no {claim.field}"
        return Finding(claim, where, notes=(note,), verdict="incomplete")
    low, high = claim.bound[0], claim.bound[-1]
    beyond = {  # how far each value lies on the wrong side
        "below": [value - high for value in values],
        "above": [low - value for value in values],
        "within": [max(low - value, value - high) for value in values],
    }[claim.expect]
    worst = max(range(len(values)), key=beyond.__getitem__)
    verdict = "supported" if beyond[worst] < 0 else "contradicted"
    return Finding(claim, where, measured=values[worst], runs={0: (check.record.key,)}, verdict=verdict)


def select(value: Any, path: str) -> Iterator[float]:
    """Every number at a path into a summary: names joined by dots, ``*`` for each key or element, ``a|b`` for some
    keys, ``name[key=value]`` for the elements of a list that have this value.
    """
    if not path:
        if isinstance(value, int | float):
            yield float(value)
        elif isinstance(value, list):
            yield from (float(one) for one in value)
        return
    step = STEP.match(path)
    if step is None:
        return
    rest = path[step.end() :].removeprefix(".")
    for one in _children(value, step["name"]):
        elements = one if step["key"] and isinstance(one, list) else [one]
        for element in elements:
            if step["key"] is None or str(element.get(step["key"])) == step["value"]:
                yield from select(element, rest)


def _children(value: Any, name: str) -> list[Any]:
    if name == "*":
        return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value[one] for one in name.split("|") if isinstance(value, dict) and one in value]


def paths_figure(artifact: Artifact, checks: Sequence[Check]) -> list[Figure]:
    """The paths in the plane that the checks recorded, a panel for each decay and rate, a line for each start; [] where
    the layout has none.
    """
    if not artifact.layout.paths:
        return []
    panels = [panel for check in checks if check.record for panel in _path_panels(check.record)]
    caption = "Each path goes from a ring to a star; its colour is its start's. One run of each, without noise."
    return [Figure(artifact.title, tuple(panels), 3, caption)]


def _path_panels(record: Record) -> Iterator[Panel]:
    paths: dict[tuple[str, float], list[list[list[float]]]] = {}
    for line in read_metrics(record.metrics_file, "trajectory"):
        paths.setdefault((line["decay"], line["lr"]), []).append(line["points"])
    for (decay, lr), points in paths.items():
        by_start = zip(*points, strict=True)  # of each start, its point at each time
        series = tuple(
            Series(f"from ({path[0][0]:g}, {path[0][1]:g})", tuple(x for x, _ in path), tuple(y for _, y in path))
            for path in by_start
        )
        yield Panel(f"{DECAYS.get(decay, decay)}, rate {lr:g}", "x", "y", series, kind="path")
