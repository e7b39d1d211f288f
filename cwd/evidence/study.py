"""All artifacts at one scale, over one runs folder: their points with what is done, and their findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cwd.config import identity_of
from cwd.errors import UserError
from cwd.evidence.artifact_files import Artifact, Plain, load_artifact, load_ladder
from cwd.evidence.artifacts import Point, base_points, expand, missing, with_cells
from cwd.evidence.claims import Finding, judge
from cwd.evidence.grid import Cell, RunsFolder
from cwd.evidence.items import lacks, with_suite
from cwd.evidence.labels import labelled
from cwd.evidence.lambdas import Choice, own_choices
from cwd.evidence.search import Searched, best_of_stages, searches
from cwd.evidence.theory import Check, find_checks, judge_checks
from cwd.evidence.trials import trials
from cwd.suites import Suite


@dataclass(frozen=True)
class State:
    """An artifact as far as its runs go."""

    artifact: Artifact
    scale: str
    points: list[Point]
    checks: list[Check]
    findings: list[Finding]
    choices: list[Choice]  # of lambda, for its points with a lambda of their own
    searches: list[Searched]  # likewise, where a whole search was each arm's own
    search_runs: int  # in the search on which the baseline's rate and lambda are tuned, at its sizes
    tuning: list[Point]  # what the choices are made from, on tuning seeds
    suite: Suite | None = None  # what its runs are evaluated on
    bases: tuple[Point, ...] = ()  # the runs that its runs go on from

    @cached_property
    def missing(self) -> list[tuple[dict[str, Any], float]]:
        """The runs to do, those that a choice of lambda waits for among them; as
        :func:`cwd.evidence.artifacts.missing`.
        """
        return missing(labelled(self.artifact.name, [*self.bases, *self.points, *self.tuning]))

    @cached_property
    def unevaluated(self) -> list[str]:
        """The keys of its finished runs that were not evaluated on its suite."""
        cells = [cell for point in self.points for cell in point.cells.values()]
        lacking = [cell.record for cell in cells if self.suite and lacks(cell, self.suite)]
        return list(dict.fromkeys(record.key for record in lacking if record))

    @property
    def unfinished(self) -> list[str]:
        """The state of each of its runs that has no result."""
        cells = [cell for point in self.points for cell in point.cells.values()]
        states = [cell.state for cell in cells if not cell.summary]
        checks = ["missing" for check in self.checks if not check.record]
        return [*states, *checks, *("not evaluated" for _ in self.unevaluated)]

    @property
    def needs(self) -> list[str]:
        """What must exist before the rest of it can be run."""
        return list(dict.fromkeys(point.needs for point in self.points if point.needs))


class Study:
    """Every artifact at one scale.

    Args:
        scale: smoke, laptop or paper.
        runs: the runs folder.
        seeds: report seeds, instead of the ladder's number.

    Raises:
        UserError: no such scale, a ladder that is not right, or no seeds.
    """

    def __init__(self, scale: str, runs: Path, seeds: int | None = None) -> None:
        if seeds is not None and seeds < 1:
            raise UserError(f"--seeds {seeds}: must be at least 1")
        self.ladder, self.seeds = load_ladder(scale), seeds
        self.folder = RunsFolder(runs)
        self._tuning: dict[str, list[Point]] = {}

    def state(self, name: str) -> State:
        """The artifact of configs/artifact/`name`.yaml as it is now."""
        artifact, suite = with_suite(load_artifact(name), self.ladder)
        tuning = {block.own: self._tuning_points(block.own) for block in artifact.blocks if block.own}
        choices = [(source, choice) for source in tuning for choice in own_choices(tuning[source])]
        found = [(source, search) for source in tuning for search in searches(tuning[source], self.ladder)]
        own: dict[Any, Plain] = {(source, *choice.key): choice.values for source, choice in choices}
        own |= {(source, *search.key): search.own for source, search in found}
        wanted = base_points(artifact, self.ladder)
        bases = dict(zip(wanted, with_cells(list(wanted.values()), self.folder), strict=True))
        points = self._points(artifact, own, {size: _key_of(point.cells[0]) for size, point in bases.items()})
        edges: list[tuple[Any, str, str]] = [choice.key for _, choice in choices if choice.at_edge]
        edges += [search.key for _, search in found if search.own.keys() & search.at_edge]
        points = _with_edges(points, edges)
        checks = find_checks(artifact, self.folder)
        smoke = self.ladder.scale == "smoke"
        findings = [*judge(artifact, points, smoke), *judge_checks(artifact, checks)]
        return State(
            artifact,
            self.ladder.scale,
            points,
            checks,
            findings,
            [choice for _, choice in choices],
            [search for _, search in found],
            self._search_runs(artifact),
            [point for source in tuning for point in tuning[source]],
            suite,
            tuple(bases.values()),
        )

    def _points(
        self, artifact: Artifact, own: Mapping[Any, Plain], bases: Mapping[str, str | None] | None = None
    ) -> list[Point]:
        """The artifact's points with their cells; those of a search as far as its stages have ended."""
        best: dict[Any, Plain] = {}
        while True:
            points = with_cells(expand(artifact, self.ladder, self.seeds, own, best, bases), self.folder)
            found = {one.key: one.values for one in best_of_stages(points)}
            if found == best:
                return points
            best = found

    def _search_runs(self, artifact: Artifact) -> int:
        """Of the search at the artifact's sizes."""
        sizes = {size for block in artifact.blocks for size in block.sizes}
        searches = [self.ladder.sizes[size].search for size in sizes if size in self.ladder.sizes]
        stages = [stage for search in searches for found in search.values() for stage in found]
        return sum(len(trials(stage, "")) for stage in stages) * len(self.ladder.tuning_seeds)

    def _tuning_points(self, name: str) -> list[Point]:
        """The grid, or the search, of artifact `name` on its tuning seeds alone."""
        if name not in self._tuning:
            points = self._points(load_artifact(name), {})
            tuned_on = [point for point in points if point.coordinates["choice"] in ("grid", "search")]
            self._tuning[name] = [point.on_tuning_seeds() for point in tuned_on]
        return self._tuning[name]


def _with_edges(points: Sequence[Point], edges: Sequence[tuple[Any, str, str]]) -> list[Point]:
    """The points, those at an arm's own best marked whose size (None: any), optimizer and arm are among `edges`."""

    def marked(where: Mapping[str, Any]) -> bool:
        names = where.get("optimizer"), where.get("arm")
        return where["choice"] == "own" and ((None, *names) in edges or (where["size"], *names) in edges)

    return [dataclasses.replace(point, at_edge=marked(point.coordinates)) for point in points]


def _key_of(cell: Cell) -> str | None:
    """The key of a run that is done."""
    return cell.record.key if cell.record and cell.summary else None


def all_missing(states: Sequence[State]) -> list[tuple[dict[str, Any], float]]:
    """The runs to do of several artifacts, each once, seed by seed. A tracker shows a run that several ask for in the
    group of the first, with all of them as tags.
    """
    runs: dict[str, tuple[dict[str, Any], float]] = {}
    artifacts: dict[str, list[str]] = {}
    for state in states:
        for config, cost in state.missing:
            name = repr(identity_of(config))
            runs.setdefault(name, (config, cost))
            artifacts.setdefault(name, []).append(state.artifact.name)
    tagged = [
        ({**config, "tracker": {**config["tracker"], "tags": artifacts[name]}}, cost)
        for name, (config, cost) in runs.items()
    ]
    return sorted(tagged, key=lambda run: run[0]["seed"])
