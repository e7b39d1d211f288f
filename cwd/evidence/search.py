"""The search for hyperparameters, as in the paper's Appendix F: stage by stage, each a grid around the best of the
stages before. What a stage found is chosen here; what it tries is in cwd.evidence.trials.

The paper names the grids and not their order, and no product of all of them is affordable: stages are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cwd.evidence.artifact_files import Ladder, Plain
from cwd.evidence.artifacts import Point
from cwd.evidence.trials import shown

IN_LADDER = ("batch_size",)  # a size's own, in configs/ladder/
NAMES = {"lr": "rate", "weight_decay": "lambda"}
Key = tuple[str, str, str, int]  # size, optimizer, arm, number of the stage


@dataclass(frozen=True)
class Best:
    """The best trial of a stage: the lowest mean final loss over the tuning seeds.

    ``values`` are those of the trial alone, by axis; ``tried`` what its stage tried, by axis; ``runs`` how many runs it
    was chosen from.
    """

    size: str
    optimizer: str
    arm: str
    stage: int
    values: Plain
    tried: dict[str, list[Any]]
    loss: float
    runs: int
    seeds: tuple[int, ...]

    @property
    def key(self) -> Key:
        """What names the stage among all."""
        return self.size, self.optimizer, self.arm, self.stage

    @property
    def at_edge(self) -> list[str]:
        """The axes with several numbers whose best is the smallest or the largest."""
        axes = [(name, [one for one in tried if isinstance(one, int | float)]) for name, tried in self.tried.items()]
        return [name for name, tried in axes if len(tried) > 1 and self.values[name] in (min(tried), max(tried))]


@dataclass(frozen=True)
class Searched:
    """A search that has ended: the best trial of every stage of one size, optimizer and arm."""

    stages: tuple[Best, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """Size, optimizer and arm."""
        return self.stages[-1].key[:3]

    @property
    def values(self) -> Plain:
        """What it found, by axis; a later stage's word counts."""
        return {axis: value for best in self.stages for axis, value in best.values.items()}

    @property
    def own(self) -> Plain:
        """The values that an arm of its own takes: all but the batch size, as other batches are no pairs."""
        return {axis: value for axis, value in self.values.items() if axis not in IN_LADDER}

    @property
    def at_edge(self) -> list[str]:
        """The axes whose best lies at the edge of the last grid that had them."""
        last = {axis: best for best in self.stages for axis in best.values}
        return [axis for axis, best in last.items() if axis in best.at_edge]

    @property
    def runs(self) -> int:
        """How many runs it was chosen from, over all stages: the arm's budget."""
        return sum(best.runs for best in self.stages)

    def __str__(self) -> str:
        last = self.stages[-1]
        found = ", ".join(f"{NAMES.get(axis, axis)} {shown(value)}" for axis, value in self.values.items())
        seeds = ", ".join(map(str, last.seeds))
        edge = f"; {', '.join(self.at_edge)} AT THE EDGE OF THE GRID, widen it" if self.at_edge else ""
        name, budget = " ".join(self.key), f"of {self.runs} runs on seeds {seeds}"
        return f"{name}: {found}, loss {last.loss:.4f} ({budget}{edge})"


def searches(points: Sequence[Point], ladder: Ladder) -> list[Searched]:
    """Every search among the points whose stages have all ended."""
    found: dict[tuple[str, str, str], list[Best]] = {}
    for best in best_of_stages(points):
        found.setdefault(best.key[:3], []).append(best)
    return [
        Searched(tuple(stages))
        for (size, optimizer, _), stages in found.items()
        if len(stages) == len(ladder.sizes[size].search[optimizer])
    ]


def best_of_stages(points: Sequence[Point]) -> list[Best]:
    """The best trial of each stage whose runs have all ended, the first stages first; none that diverged."""
    found = []
    groups: dict[Key, list[Point]] = {}
    for point in points:
        if point.coordinates["choice"] == "search":
            where = point.coordinates
            groups.setdefault((where["size"], where["optimizer"], where["arm"], where["stage"]), []).append(point)
    for key, mine in groups.items():
        losses = [tuning_loss(point) for point in mine]
        known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
        if known and None not in losses:
            best = mine[losses.index(min(known))]
            tried = {axis: _distinct(point.trial[axis] for point in mine) for axis in best.trial}
            runs = len(mine) * len(best.tuning_seeds)
            found.append(Best(*key, best.trial, tried, min(known), runs, best.tuning_seeds))
    return found


def tuning_loss(point: Point) -> float | None:
    """The mean final loss over the tuning seeds; infinite if one diverged, None if one has not ended."""
    cells = [point.cells.get(seed) for seed in point.tuning_seeds]
    losses = []
    for cell in cells:
        if cell is None or cell.state not in ("done", "diverged"):
            return None
        losses.append(math.inf if cell.loss is None else cell.loss)
    return sum(losses) / len(losses)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted({tuple(one) if isinstance(one, list) else one for one in values})
