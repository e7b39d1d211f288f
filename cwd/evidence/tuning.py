"""The baseline's tuning: from the runs of the grid to the files of configs/tuned/, with where the values come from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cwd.evidence.artifact_files import load_ladder
from cwd.evidence.artifacts import Point
from cwd.evidence.lambdas import tuning_loss
from cwd.evidence.study import State


@dataclass(frozen=True)
class Tuned:
    """The best rate and lambda of an optimizer with decoupled decay, and the grid that they are the best of."""

    scale: str
    file: str  # of configs/tuned/
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
        return f"{self.file}: rate {self.lr:g}, lambda {self.weight_decay:g}, loss {self.loss:.4f}{edge}"


def tuned(state: State) -> list[Tuned]:
    """The best cell of each size and optimizer whose runs have all ended: the lowest mean final loss over the tuning
    seeds.
    """
    found = []
    for where in dict.fromkeys((point.coordinates["size"], point.coordinates["optimizer"]) for point in state.points):
        mine = [point for point in state.points if (point.coordinates["size"], point.coordinates["optimizer"]) == where]
        losses = [tuning_loss(point) for point in mine]
        known = [(loss, point) for loss, point in zip(losses, mine, strict=True) if loss is not None]
        if len(known) == len(mine):
            loss, best = min(known, key=lambda pair: pair[0])
            if math.isfinite(loss):
                found.append(_tuned(state.scale, best, loss, mine))
    return found


def _tuned(scale: str, best: Point, loss: float, grid: list[Point]) -> Tuned:
    where = best.coordinates
    rates, lambdas = (tuple(sorted({point.coordinates[axis] for point in grid})) for axis in ("lr", "lambda"))
    file = f"{_tuned_for(scale, where['size'])}_{where['optimizer']}"
    return Tuned(scale, file, where["optimizer"], where["lr"], where["lambda"], loss, rates, lambdas, best.tuning_seeds)


def _tuned_for(scale: str, size: str) -> str:
    """What the values are for: of text a scale, all sizes of which share them; of images a model."""
    words = dict(word.split("=", 1) for word in load_ladder(scale).sizes[size].overrides)
    return words["model"] if words.get("task") == "vision" else scale


def tuned_file(best: Tuned) -> str:
    """The content of configs/tuned/FILE.yaml."""
    rates, lambdas = (", ".join(f"{value:g}" for value in axis) for axis in (best.rates, best.lambdas))
    edge = f"At the grid's edge: {', '.join(best.at_edge)}. " if best.at_edge else ""
    return (
        "# @package _global_\n"
        f"# Best of a grid on decoupled decay, seeds {', '.join(map(str, best.seeds))}; written by scripts/tune.py.\n"
        f"# Rates {rates}; lambdas {lambdas}.\n"
        f"# Mean validation loss {best.loss:.4f}. {edge}Cautious decay reuses both, as in the paper.\n"
        f"optimizer: {{lr: {best.lr!r}}}\n"
        f"decay: {{weight_decay: {best.weight_decay!r}}}\n"
    )
