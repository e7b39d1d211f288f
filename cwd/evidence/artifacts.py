"""An artifact's grid at one scale: the runs that it asks for, which of them are done, and what is missing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cwd.config import identity_of
from cwd.errors import UserError, nearest
from cwd.evidence.artifact_files import Artifact, Block, Ladder, Rung
from cwd.evidence.grid import Cell, RunsFolder, find_cells
from cwd.sweeps import compose_config, override_axes

AXES = {  # coordinate -> where a run's configuration has it
    "optimizer": "optimizer.name",
    "arm": "decay.mode",
    "lambda": "decay.weight_decay",
    "lr": "optimizer.lr",
    "schedule": "schedule.name",
    "decay_schedule": "decay.schedule",
}
OVERRIDES = {"optimizer": "optimizer", "decay": "arm", "schedule": "schedule", "decay.schedule": "decay_schedule"}
Plain = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One configuration of an artifact's grid, on all its seeds.

    ``coordinates`` say where in the grid it is: ``size``, those of AXES, ``multiple`` of the tuned lambda, and
    ``choice``: how its lambda was chosen (tuned, grid, own, search). ``config`` is the whole configuration; None where
    something must exist first, which ``needs`` says.
    """

    coordinates: dict[str, Any]
    config: Plain | None
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...] = ()
    needs: str | None = None
    core_seconds: float | None = None
    cells: dict[int, Cell] = field(default_factory=dict)

    def on(self, seed: int) -> Plain:
        """The whole configuration on a seed."""
        assert self.config is not None
        return {**self.config, "seed": seed}

    def done(self, seeds: Sequence[int] | None = None) -> dict[int, Cell]:
        """The cells that have a result, of these seeds (the report's, if not given)."""
        wanted = self.seeds if seeds is None else seeds
        return {seed: self.cells[seed] for seed in wanted if seed in self.cells and self.cells[seed].summary}

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Whether the coordinates are these; several values are separated by commas."""
        return all(text_of(self.coordinates.get(name)) in str(value).split(",") for name, value in where.items())


def expand(artifact: Artifact, ladder: Ladder, seeds: int | None, own: Mapping[Any, Any]) -> list[Point]:
    """The artifact's points at the ladder's scale, without records.

    Args:
        seeds: how many report seeds; None: the artifact's or the ladder's own number.
        own: (artifact, optimizer, arm) -> the multiple of the tuned lambda that is the arm's own best. Where it lacks
            one, the points wait for the tuning.

    Raises:
        UserError: an override does not fit, or the ladder lacks one of the sizes.
    """
    report = tuple(range(seeds or artifact.seeds or ladder.seeds))
    points: list[Point] = []
    for block in artifact.blocks:
        for size in block.sizes:
            if size not in ladder.sizes:
                known = ", ".join(ladder.sizes)
                raise UserError(
                    f"{artifact.name}: size {size}: the {ladder.scale} ladder has none{nearest(size, ladder.sizes)}; "
                    f"it has {known}"
                )
            points += _block_points(artifact, block, size, ladder, report, own)
    return points


def _block_points(
    artifact: Artifact, block: Block, size: str, ladder: Ladder, report: tuple[int, ...], own: Mapping[Any, Any]
) -> Iterator[Point]:
    rung = ladder.sizes[size]
    shared: dict[str, Any] = {
        "seeds": () if block.seeds == "tuning" else report,
        "tuning_seeds": () if block.seeds == "report" else ladder.tuning_seeds,
        "core_seconds": rung.core_seconds,
    }
    needs = artifact.needs or rung.needs
    if needs:
        for coordinates in _named(block):
            yield Point({"size": size, **coordinates, "choice": "tuned"}, None, needs=needs, **shared)
        return
    for plain in _searched(block, ladder, rung) if block.search else _composed(block.overrides, ladder, rung):
        for config, how in _at_lambdas(block, ladder, plain, own):
            waits = None if config else f"the tuning of {block.own} (its tuning seeds are not all done)"
            yield Point({"size": size, **_coordinates(config or plain), **how}, config, needs=waits, **shared)


def _composed(overrides: Sequence[str], ladder: Ladder, rung: Rung) -> Iterator[Plain]:
    """The configurations of a product of overrides, on a rung."""
    axes = override_axes(overrides)
    for choice in itertools.product(*axes.values()):
        words = (f"{key}={value}" for key, value in zip(axes, choice, strict=True))
        yield _compose(frozenset((*ladder.overrides, *rung.overrides, *words)))


@cache
def _compose(words: frozenset[str]) -> Plain:
    """One configuration as plain data, composed once in a process; not to be changed. No two words set one key."""
    return dataclasses.asdict(compose_config(sorted(words)))


def _searched(block: Block, ladder: Ladder, rung: Rung) -> Iterator[Plain]:
    """The rung's grid of rates and lambdas for each optimizer, or the ladder's."""
    for optimizer, grid in (rung.search or ladder.search).items():
        for plain in _composed((*block.overrides, f"optimizer={optimizer}"), ladder, rung):
            for lr, weight_decay in itertools.product(grid.lr, grid.weight_decay):
                decay = {**plain["decay"], "weight_decay": weight_decay}
                yield {**plain, "optimizer": {**plain["optimizer"], "lr": lr}, "decay": decay}


def _at_lambdas(block: Block, ladder: Ladder, plain: Plain, own: Mapping[Any, Any]) -> Iterator[tuple[Any, Plain]]:
    """(configuration, coordinates) at each lambda that the block asks for; None as configuration where the arm's own
    best is not known yet.
    """
    if block.lambdas:
        for multiple in ladder.multiples:
            yield at_multiple(plain, multiple), {"choice": "grid", "multiple": multiple}
    elif block.own:
        best = own.get((block.own, plain["optimizer"]["name"], plain["decay"]["mode"]))
        how = {"choice": "own", "arm": plain["decay"]["mode"], "multiple": best}
        yield (None if best is None else at_multiple(plain, best)), how
    else:
        yield plain, {"choice": "search" if block.search else "tuned"}


def at_multiple(plain: Plain, multiple: float) -> Plain:
    """The configuration with lambda times `multiple`, to four digits. At 0 the mode is none, which all arms share."""
    if multiple == 1:
        return plain
    decay = dict(plain["decay"])
    decay["weight_decay"] = float(f"{decay['weight_decay'] * multiple:.4g}")
    if multiple == 0:
        decay["mode"] = "none"
    return {**plain, "decay": decay}


def _named(block: Block) -> Iterator[Plain]:
    """Coordinates from the overrides' text alone, for what cannot be composed yet."""
    axes = {key: values for key, values in override_axes(block.overrides).items() if key in OVERRIDES}
    for choice in itertools.product(*axes.values()):
        yield {OVERRIDES[key]: value for key, value in zip(axes, choice, strict=True)}


def _coordinates(plain: Plain) -> Plain:
    found = {}
    for name, path in AXES.items():
        value: Any = plain
        for part in path.split("."):
            value = value[part]
        found[name] = value
    return found


def with_cells(points: Sequence[Point], runs: RunsFolder) -> list[Point]:
    """The points with their cells, found in `runs`."""
    wanted = [
        (i, seed) for i, p in enumerate(points) if p.config for seed in dict.fromkeys((*p.seeds, *p.tuning_seeds))
    ]
    cells = find_cells([identity_of(points[i].on(seed)) for i, seed in wanted], runs)
    found: list[dict[int, Cell]] = [{} for _ in points]
    for (i, seed), cell in zip(wanted, cells, strict=True):
        found[i][seed] = cell
    return [dataclasses.replace(point, cells=mine) for point, mine in zip(points, found, strict=True)]


def missing(points: Sequence[Point]) -> list[tuple[Plain, float]]:
    """(whole configuration, core seconds) of each run that is neither done nor diverged, once each, seed by seed: so
    that the first seeds are complete pairs early.
    """
    wanted: dict[str, tuple[int, Plain, float]] = {}
    for point in points:
        for seed, cell in point.cells.items():
            if cell.state not in ("done", "diverged"):
                config = point.on(seed)
                wanted.setdefault(repr(identity_of(config)), (seed, config, point.core_seconds or 0.0))
    return [(config, cost) for _, config, cost in sorted(wanted.values(), key=lambda one: one[0])]


def text_of(value: Any) -> str:
    """A coordinate as it stands in an artifact's file."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def total_seconds(points: Sequence[Point]) -> float:
    """Core seconds of all distinct runs of the points, done or not."""
    costs = {}
    for point in points:
        for seed in point.cells:
            costs[repr(identity_of(point.on(seed)))] = point.core_seconds or 0.0
    return sum(costs.values())
