"""The baseline's tuning: from the runs of the grids to the files of configs/tuned/, with where the values come from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cwd.evidence.artifact_files import Ladder
from cwd.evidence.artifacts import Point
from cwd.evidence.lambdas import tuning_loss
from cwd.evidence.study import State


@dataclass(frozen=True)
class Tuned:
    """The best rate and lambda of an optimizer with decoupled decay at one size, and the grid they are the best of."""

    name: str  # of the file of configs/tuned/
    size: str
    optimizer: str
    lr: float
    weight_decay: float
    loss: float
    rates: tuple[float, ...]
    lambdas: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def at_edge(self) -> list[str]:
        """Which of the two lies at the edge of its grid (of more than one value)."""
        axes = (("rate", self.lr, self.rates), ("lambda", self.weight_decay, self.lambdas))
        return [name for name, value, grid in axes if len(grid) > 1 and value in (min(grid), max(grid))]

    def __str__(self) -> str:
        edge = f"; {' and '.join(self.at_edge)} AT THE EDGE OF THE GRID, widen it" if self.at_edge else ""
        return (
            f"{self.size} {self.optimizer}: rate {self.lr:g}, lambda {self.weight_decay:g}, loss {self.loss:.4f}{edge}"
        )


def tuned(state: State, ladder: Ladder) -> list[Tuned]:
    """The best cell of each size and optimizer whose runs have all ended: the lowest mean final loss over the tuning
    seeds.
    """
    found = []
    for size, optimizer in dict.fromkeys((p.coordinates["size"], p.coordinates["optimizer"]) for p in state.points):
        mine = [point for point in state.points if point.matches({"size": size, "optimizer": optimizer})]
        losses = [tuning_loss(point) for point in mine]
        known = [(loss, point) for loss, point in zip(losses, mine, strict=True) if loss is not None]
        if len(known) == len(mine):
            loss, best = min(known, key=lambda pair: pair[0])
            if math.isfinite(loss):
                name = f"{ladder.sizes[size].tuned or ladder.scale}_{optimizer}"
                found.append(_tuned(name, best, loss, mine))
    return found


def _tuned(name: str, best: Point, loss: float, grid: list[Point]) -> Tuned:
    where = best.coordinates
    rates, lambdas = (tuple(sorted({point.coordinates[axis] for point in grid})) for axis in ("lr", "lambda"))
    size, optimizer = where["size"], where["optimizer"]
    return Tuned(name, size, optimizer, where["lr"], where["lambda"], loss, rates, lambdas, best.tuning_seeds)


def tuned_file(best: Tuned) -> str:
    """The content of its file of configs/tuned/."""
    rates, lambdas = (", ".join(f"{value:g}" for value in axis) for axis in (best.rates, best.lambdas))
    seeds = ", ".join(map(str, best.seeds))
    edge = f"At the grid's edge: {', '.join(best.at_edge)}. " if best.at_edge else ""
    return (
        "# @package _global_\n"
        f"# {best.size}: best of a grid on decoupled decay, seeds {seeds}; written by scripts/tune.py.\n"
        f"# Rates {rates}; lambdas {lambdas}.\n"
        f"# Mean validation loss {best.loss:.4f}. {edge}Cautious decay reuses both, as in the paper.\n"
        f"optimizer: {{lr: {best.lr!r}}}\n"
        f"decay: {{weight_decay: {best.weight_decay!r}}}\n"
    )
