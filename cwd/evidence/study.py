"""All artifacts at one scale, over one runs folder: their points with what is done, and their findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.evidence.artifact_files import Artifact, load_artifact, load_ladder
from cwd.evidence.artifacts import Point, expand, missing, with_cells
from cwd.evidence.claims import Finding, judge
from cwd.evidence.grid import RunsFolder
from cwd.evidence.lambdas import Choice, own_choices
from cwd.evidence.theory import Check, find_checks, judge_checks


@dataclass(frozen=True)
class State:
    """An artifact as far as its runs go."""

    artifact: Artifact
    scale: str
    points: list[Point]
    checks: list[Check]
    findings: list[Finding]
    choices: list[Choice]  # of lambda, for its points with a lambda of their own
    search_runs: int  # in the grid on which the baseline's rate and lambda are tuned

    @cached_property
    def missing(self) -> list[tuple[dict[str, Any], float]]:
        """The runs to do, as :func:`cwd.evidence.artifacts.missing`."""
        return missing(self.points)

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
        self._choices: dict[str, list[Choice]] = {}

    def state(self, name: str) -> State:
        """The artifact of configs/artifact/`name`.yaml as it is now."""
        artifact = load_artifact(name)
        choices = [choice for source in _sources(artifact) for choice in self.choices(source)]
        own = {(source, c.optimizer, c.arm): c.multiple for source in _sources(artifact) for c in self.choices(source)}
        points = with_cells(expand(artifact, self.ladder, self.seeds, own), self.folder)
        checks = find_checks(artifact, self.folder)
        smoke = self.ladder.scale == "smoke"
        findings = [*judge(artifact, points, smoke), *judge_checks(artifact, checks)]
        return State(artifact, self.ladder.scale, points, checks, findings, choices, self._search_runs())

    def _search_runs(self) -> int:
        grids = self.ladder.search.values()
        return sum(len(grid.lr) * len(grid.weight_decay) for grid in grids) * len(self.ladder.tuning_seeds)

    def choices(self, name: str) -> list[Choice]:
        """The own best lambdas that the tuning seeds of artifact `name` give, as far as they are done."""
        if name not in self._choices:
            points = expand(load_artifact(name), self.ladder, self.seeds, {})
            grid = [point for point in points if point.coordinates["choice"] == "grid"]
            self._choices[name] = own_choices(with_cells(grid, self.folder))
        return self._choices[name]


def _sources(artifact: Artifact) -> list[str]:
    return list(dict.fromkeys(block.own for block in artifact.blocks if block.own))


def all_missing(states: Sequence[State]) -> list[tuple[dict[str, Any], float]]:
    """The runs to do of several artifacts, each once, seed by seed."""
    runs = {repr(config): (config, cost) for state in states for config, cost in state.missing}
    return sorted(runs.values(), key=lambda run: run[0]["seed"])
