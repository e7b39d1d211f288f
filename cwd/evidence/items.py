"""Evaluations as evidence: which runs lack one, whether two were asked the same, and how two compare item by item."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean
from typing import Any

from cwd.errors import UserError
from cwd.evidence.artifact_files import Artifact, Claim, Ladder, Layout
from cwd.evidence.grid import Cell
from cwd.evidence.measures import is_evaluation, parts
from cwd.runs import Record
from cwd.runs.evaluations import read_evaluation
from cwd.suites import Suite, load_suite

SAME = ("task_hashes", "task_versions", "harness", "num_fewshot")


def with_suite(artifact: Artifact, ladder: Ladder) -> tuple[Artifact, Suite | None]:
    """The artifact with its metric ``suite`` written out as the tasks of what stands for its suite at this scale.

    What the paper printed stays that of its own tasks: a mean over other tasks is compared with it, as a smaller model
    is.
    """
    if artifact.suite is None:
        return artifact, None
    own = load_suite(artifact.suite)
    suite = load_suite(ladder.suites.get(artifact.suite, artifact.suite))

    def written(metric: str) -> list[str]:
        tail = metric.removeprefix("suite")
        return (
            [f"{suite.name}:{entry.task}{tail}" for entry in suite.tasks] if metric in ("suite", "suite%") else [metric]
        )

    def claimed(claim: Claim) -> Claim:
        if claim.metric not in ("suite", "suite%"):
            return claim
        return replace(claim, metric=", ".join(written(claim.metric)), printed=tuple(one.task for one in own.tasks))

    layout: Layout = replace(artifact.layout, metrics=tuple(m for one in artifact.layout.metrics for m in written(one)))
    return replace(artifact, layout=layout, claims=tuple(map(claimed, artifact.claims))), suite


def lacks(cell: Cell, suite: Suite) -> bool:
    """Whether the run is done and lacks a result on a task of the suite."""
    record = cell.record
    if record is None or cell.state != "done":
        return False
    return any(read_evaluation(record, suite.name, entry.task) is None for entry in suite.tasks)


def check_same_items(a: Cell, b: Cell, metric: str) -> None:
    """Refuses to compare evaluations on other items, prompts or versions of the harness.

    Raises:
        UserError: says in what they differ.
    """
    for name in filter(is_evaluation, parts(metric)):
        suite, _, task = name.removesuffix("%").partition(":")
        found = [read_evaluation(cell.record, suite, task) if cell.record else None for cell in (a, b)]
        if found[0] is None or found[1] is None:
            continue
        for key in SAME:
            if found[0][key] != found[1][key]:
                keys = " and ".join(cell.record.key for cell in (a, b) if cell.record)
                raise UserError(f"runs {keys}: {suite}:{task}: not a pair, their {key} differ; evaluate both again")


@dataclass(frozen=True)
class Paired:
    """The mean difference of two models over the items of some tasks, each task counting alike, with a 95% interval."""

    mean: float
    low: float
    high: float
    items: int
    better: int  # items that only the first has right
    worse: int  # items that only the second has right


def compare_items(a: Record, b: Record, suite: str, tasks: Sequence[str]) -> Paired | None:
    """Model a minus model b on the same items; None where an evaluation is missing.

    The interval is the normal one of a stratified mean: the variance of the mean is the sum over the T tasks of
    s_t^2 / n_t / T^2, s_t the standard deviation of the per-item differences of task t, n_t its items. It says how far
    the items decide between these two models, and nothing of other seeds.

    Raises:
        UserError: they were asked different things.
    """
    means, variance, items, better, worse = [], 0.0, 0, 0, 0
    for task in tasks:
        differences = _differences(a, b, suite, task)
        if differences is None:
            return None
        n, mean = len(differences), fmean(differences)
        means.append(mean)
        variance += sum((one - mean) ** 2 for one in differences) / max(n - 1, 1) / n / len(tasks) ** 2
        items += n
        better += sum(one > 0 for one in differences)
        worse += sum(one < 0 for one in differences)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    return Paired(fmean(means), fmean(means) - half, fmean(means) + half, items, better, worse)


def _differences(a: Record, b: Record, suite: str, task: str) -> list[float] | None:
    first, second = read_evaluation(a, suite, task), read_evaluation(b, suite, task)
    if first is None or second is None:
        return None
    if first["items"]["ids"] != second["items"]["ids"]:
        raise UserError(f"runs {a.key} and {b.key}: {suite}:{task}: their items differ; evaluate both again")
    return [x - y for x, y in zip(_scores(first), _scores(second), strict=True)]


def _scores(result: dict[str, Any]) -> list[float]:
    items = result["items"]
    return items.get(result["metric"], items.get("acc"))


def pairs_of(claim: Claim, suite: Suite, pairs: Mapping[int, Sequence[Record]]) -> Iterator[tuple[int, Paired]]:
    """(seed, comparison) of each two runs, by seed, behind a finding of the claim; none where it is about no task."""
    tasks = [one.removesuffix("%").partition(":")[2] for one in parts(claim.metric) if is_evaluation(one)]
    for seed, pair in sorted(pairs.items()):
        found = compare_items(pair[0], pair[1], suite.name, tasks) if tasks and len(pair) == 2 else None
        if found:
            yield seed, found
