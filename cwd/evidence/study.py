"""All artifacts at one scale, over one runs folder: their points with what is done, and their findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.evidence.artifact_files import Artifact, Plain, load_artifact, load_ladder
from cwd.evidence.artifacts import Point, expand, missing, with_cells
from cwd.evidence.claims import Finding, judge
from cwd.evidence.grid import RunsFolder
from cwd.evidence.lambdas import Choice, own_choices
from cwd.evidence.search import Searched, best_of_stages, searches
from cwd.evidence.theory import Check, find_checks, judge_checks
from cwd.evidence.trials import trials


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
    search_runs: int  # in the grid on which the baseline's rate and lambda are tuned
    tuning: list[Point]  # what the choices are made from, on tuning seeds

    @cached_property
    def missing(self) -> list[tuple[dict[str, Any], float]]:
        """The runs to do, those that a choice of lambda waits for among them; as
        :func:`cwd.evidence.artifacts.missing`.
        """
        return missing([*self.points, *self.tuning])

    @property
    def unfinished(self) -> list[str]:
        """The state of each of its runs that has no result."""
        cells = [cell for point in self.points for cell in point.cells.values()]
        return [cell.state for cell in cells if not cell.summary] + [
            "missing" for check in self.checks if not check.record
        ]

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
        artifact = load_artifact(name)
        tuning = {block.own: self._tuning_points(block.own) for block in artifact.blocks if block.own}
        choices = [(source, choice) for source in tuning for choice in own_choices(tuning[source])]
        found = [(source, search) for source in tuning for search in searches(tuning[source], self.ladder)]
        own: dict[Any, Plain] = {(source, *choice.key): choice.values for source, choice in choices}
        own |= {(source, *search.key): search.own for source, search in found}
        points = self._points(artifact, own)
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
            self._search_runs(),
            [point for source in tuning for point in tuning[source]],
        )

    def _points(self, artifact: Artifact, own: Mapping[Any, Plain]) -> list[Point]:
        """The artifact's points with their cells; those of a search as far as its stages have ended."""
        best: dict[Any, Plain] = {}
        while True:
            points = with_cells(expand(artifact, self.ladder, self.seeds, own, best), self.folder)
            found = {one.key: one.values for one in best_of_stages(points)}
            if found == best:
                return points
            best = found

    def _search_runs(self) -> int:
        stages = [
            len(trials(stage, ""))
            for rung in self.ladder.sizes.values()
            for found in rung.search.values()
            for stage in found
        ]
        return sum(stages) * len(self.ladder.tuning_seeds)

    def _tuning_points(self, name: str) -> list[Point]:
        """The grid, or the search, of artifact `name` on its tuning seeds alone."""
        if name not in self._tuning:
            points = self._points(load_artifact(name), {})
            tuned_on = [point for point in points if point.coordinates["choice"] in ("grid", "search")]
            self._tuning[name] = [point.on_tuning_seeds() for point in tuned_on]
        return self._tuning[name]


def all_missing(states: Sequence[State]) -> list[tuple[dict[str, Any], float]]:
    """The runs to do of several artifacts, each once, seed by seed."""
    runs = {repr(config): (config, cost) for state in states for config, cost in state.missing}
    return sorted(runs.values(), key=lambda run: run[0]["seed"])
