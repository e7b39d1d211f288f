"""The best lambda: of each arm for a fair comparison, and of each seed for the claim that it does not move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cwd.evidence.artifact_files import Plain
from cwd.evidence.artifacts import Point
from cwd.evidence.search import tuning_loss

ARMS = ("decoupled", "cautious")


@dataclass(frozen=True)
class Choice:
    """An arm's own best lambda, the multiple of the tuned one with the lowest mean loss on the tuning seeds.

    ``runs`` is the arm's tuning budget: how many runs it was chosen from.
    """

    optimizer: str
    arm: str
    multiple: float
    weight_decay: float
    runs: int
    seeds: tuple[int, ...]
    at_edge: bool

    @property
    def key(self) -> tuple[None, str, str]:
        """Size (none: it is carried to all), optimizer and arm."""
        return None, self.optimizer, self.arm

    @property
    def values(self) -> Plain:
        """What it sets, as cwd.evidence.trials.with_values takes it."""
        return {"multiple": self.multiple}

    def __str__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        edge = "; AT THE EDGE OF ITS GRID, widen it" if self.at_edge else ""
        return f"{self.optimizer} {self.arm}: lambda {self.weight_decay:g} (of {self.runs} runs on seeds {seeds}{edge})"


def own_choices(points: Sequence[Point]) -> list[Choice]:
    """The choice of each optimizer and arm whose tuning runs have all ended. A run that diverged is never chosen."""
    grid = [point for point in points if point.coordinates["choice"] == "grid" and point.tuning_seeds and point.config]
    found = []
    for optimizer in dict.fromkeys(point.coordinates["optimizer"] for point in grid):
        for arm in ARMS:
            mine = [point for point in grid if _of_arm(point, optimizer, arm)]
            losses = {point.coordinates["multiple"]: tuning_loss(point) for point in mine}
            if losses and None not in losses.values():
                found.append(_choose(mine, losses, optimizer, arm))  # type: ignore[arg-type]
    return found


def _choose(points: Sequence[Point], losses: Mapping[float, float], optimizer: str, arm: str) -> Choice:
    best = min(losses, key=losses.__getitem__)
    chosen = next(point for point in points if point.coordinates["multiple"] == best)
    edge = best == max(losses) or best == min(losses) > 0
    seeds = chosen.tuning_seeds
    return Choice(optimizer, arm, best, chosen.coordinates["lambda"], len(losses) * len(seeds), seeds, edge)


def _of_arm(point: Point, optimizer: str, arm: str) -> bool:
    """Whether the point is on the arm's grid; no decay is on every arm's."""
    where = point.coordinates
    return where["optimizer"] == optimizer and (where["arm"] == arm or where["multiple"] == 0)


def best_lambda(losses: Mapping[float, float]) -> tuple[float, bool]:
    """(the lambda that minimises the loss, whether it lies at an edge of the grid).

    Args:
        losses: lambda -> loss of one seed; infinite where the run diverged.

    The vertex of the parabola in log lambda through the best grid point and its two neighbours. Without two finite
    neighbours above zero it is the grid point; at either end, lambda = 0 included, that is the edge.
    """
    order = sorted(losses)
    i = min(range(len(order)), key=lambda at: losses[order[at]])
    if i == len(order) - 1 or i == 0 or order[i - 1] == 0:
        return order[i], True
    around = order[i - 1 : i + 2]
    y0, y1, y2 = (losses[one] for one in around)
    if math.isinf(y0) or math.isinf(y2):
        return order[i], False
    x0, x1, x2 = map(math.log, around)
    left, right = (x1 - x0) * (y1 - y2), (x1 - x2) * (y1 - y0)
    if left == right:  # a flat piece
        return order[i], False
    return math.exp(x1 - 0.5 * ((x1 - x0) * left - (x1 - x2) * right) / (left - right)), False
