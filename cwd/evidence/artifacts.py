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
from cwd.evidence.artifact_files import Artifact, Block, Ladder, Plain, Rung, text_of
from cwd.evidence.grid import Cell, RunsFolder, find_cells
from cwd.evidence.trials import at_multiple, rest_of, trials, with_values
from cwd.sweeps import compose_config, override_axes

AXES = {  # coordinate -> where a run's configuration has it
    "optimizer": "optimizer.name",
    "arm": "decay.mode",
    "lambda": "decay.weight_decay",
    "lr": "optimizer.lr",
    "schedule": "schedule.name",
    "decay_schedule": "decay.schedule",
}
EMPTY: dict[Any, Plain] = {}
OVERRIDES = {"optimizer": "optimizer", "decay": "arm", "schedule": "schedule", "decay.schedule": "decay_schedule"}


@dataclass(frozen=True)
class Point:
    """One configuration of an artifact's grid, on all its seeds.

    ``coordinates`` say where in the grid it is: ``size``, those of AXES, ``multiple`` of the tuned lambda, and
    ``choice``: how its values were chosen (tuned, grid, own, search); in a search the ``stage``, and ``other`` for what
    else than rate and lambda it tries. ``trial`` is what the stage tries here, by axis. ``config`` is the whole
    configuration; None where something must exist first, which ``needs`` says. ``at_edge``: its values are an arm's own
    best, and that lies at the edge of what was tried.
    """

    coordinates: dict[str, Any]
    config: Plain | None
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...] = ()
    needs: str | None = None
    core_seconds: float | None = None
    trial: Plain = field(default_factory=dict)
    cells: dict[int, Cell] = field(default_factory=dict)
    at_edge: bool = False
    like: Plain | None = None  # where `config` is None, one that takes as long, if there is one

    def on(self, seed: int) -> Plain:
        """The whole configuration on a seed."""
        assert self.config is not None
        return {**self.config, "seed": seed}

    def done(self, seeds: Sequence[int] | None = None) -> dict[int, Cell]:
        """The cells that have a result, of these seeds (the report's, if not given)."""
        wanted = self.seeds if seeds is None else seeds
        return {seed: self.cells[seed] for seed in wanted if seed in self.cells and self.cells[seed].summary}

    def on_tuning_seeds(self) -> Point:
        """The point without its report seeds."""
        cells = {seed: self.cells[seed] for seed in self.tuning_seeds if seed in self.cells}
        return dataclasses.replace(self, seeds=(), cells=cells)

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Whether the coordinates are these; several values are separated by commas."""
        return all(text_of(self.coordinates.get(name)) in str(value).split(",") for name, value in where.items())


def base_points(artifact: Artifact, ladder: Ladder) -> dict[str, Point]:
    """size -> the run that the size's runs go on from, for those that have one."""
    sizes = dict.fromkeys(size for block in artifact.blocks for size in block.sizes if size in ladder.sizes)
    found = {}
    for size in sizes:
        rung = ladder.sizes[size]
        if rung.base:
            plain = _compose(frozenset((*ladder.overrides, *rung.base)))
            found[size] = Point({"size": size, "choice": "base"}, plain, (0,), core_seconds=rung.core_seconds)
    return found


def expand(
    artifact: Artifact,
    ladder: Ladder,
    seeds: int | None,
    own: Mapping[Any, Plain],
    best: Mapping[Any, Plain] = EMPTY,
    bases: Mapping[str, str | None] | None = None,
) -> list[Point]:
    """The artifact's points at the ladder's scale, without records.

    Args:
        seeds: how many report seeds; None: the artifact's or the ladder's own number.
        own: (artifact, size, optimizer, arm) -> the values that are the arm's own best: a multiple of the tuned lambda
            (of size None, for all sizes) or what a search found. Where it lacks one, the points wait for the tuning.
        best: (size, optimizer, arm, stage) -> the best trial of a stage of the search. Where it lacks one, the stages
            after it wait.
        bases: size -> the key of the run that its runs go on from; None where it is not done yet.

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
            found = _block_points(artifact, block, size, ladder, report, own, best)
            points += _from_base(found, bases[size]) if bases and size in bases else found
    return points


def _from_base(points: Iterator[Point], key: str | None) -> Iterator[Point]:
    """The points with the run that they go on from; without it they wait."""
    for point in points:
        if point.config is None:
            yield point
            continue
        source = key or base_name(point.coordinates["size"])
        config = {**point.config, "model": {**point.config["model"], "source": source}}
        if key is None:
            yield dataclasses.replace(point, config=None, like=config, needs="the run that they go on from")
        else:
            yield dataclasses.replace(point, config=config)


def base_name(size: str) -> str:
    """What stands for the run that a size's runs go on from, as long as it has no key."""
    return f"the base of {size}"


def _block_points(
    artifact: Artifact,
    block: Block,
    size: str,
    ladder: Ladder,
    report: tuple[int, ...],
    own: Mapping[Any, Plain],
    best: Mapping[Any, Plain],
) -> Iterator[Point]:
    rung = ladder.sizes[size]
    shared: Plain = {
        "seeds": () if block.seeds == "tuning" else report,
        "tuning_seeds": () if block.seeds == "report" else ladder.tuning_seeds,
        "core_seconds": rung.core_seconds,
    }
    needs = artifact.needs or rung.needs
    if needs:
        for coordinates in _named(block):
            yield Point({"size": size, **coordinates, "choice": "tuned"}, None, needs=needs, **shared)
    elif block.search:
        yield from _searched(block, size, ladder, best, shared)
    else:
        for plain in _composed(block.overrides, ladder, rung):
            for config, how, trial in _at_lambdas(block, size, ladder, plain, own):
                waits = None if config else f"the tuning of {block.own} (its tuning seeds are not all done)"
                where = {"size": size, **_coordinates(config or plain), **how}
                yield Point(where, config, needs=waits, trial=trial, **shared)


def _composed(overrides: Sequence[str], ladder: Ladder, rung: Rung) -> Iterator[Plain]:
    """The configurations of a product of overrides, on a rung."""
    axes = override_axes(overrides)
    for choice in itertools.product(*axes.values()):
        values = dict(zip(axes, choice, strict=True))
        words = [f"{key}={value}" for key, value in values.items()]
        if rung.tuned:
            words.append(f"tuned={rung.tuned}_{values.get('optimizer', 'adamw')}")
        yield _compose(frozenset((*ladder.overrides, *rung.overrides, *words)))


@cache
def _compose(words: frozenset[str]) -> Plain:
    """One configuration as plain data, composed once in a process; not to be changed. No two words set one key."""
    return dataclasses.asdict(compose_config(sorted(words)))


def _searched(block: Block, size: str, ladder: Ladder, best: Mapping[Any, Plain], shared: Plain) -> Iterator[Point]:
    """The rung's search for each optimizer, as far as `best` goes; the stages after that wait."""
    rung = ladder.sizes[size]
    for optimizer, stages in rung.search.items():
        for plain in _composed((*block.overrides, f"optimizer={optimizer}"), ladder, rung):
            around: Plain | None = plain
            for number, stage in enumerate(stages, 1):
                for trial in trials(stage, f"{size} {optimizer} {number}"):
                    config = None if around is None else with_values(around, trial)
                    where = {**_coordinates(with_values(around or plain, trial)), "choice": "search", "stage": number}
                    waits = None if config else f"the stages of the search at {size} before"
                    where["other"] = rest_of(trial)
                    yield Point({"size": size, **where}, config, needs=waits, trial=trial, **shared)
                found = best.get((size, optimizer, plain["decay"]["mode"], number))
                around = None if around is None or found is None else with_values(around, found)


def _at_lambdas(
    block: Block, size: str, ladder: Ladder, plain: Plain, own: Mapping[Any, Plain]
) -> Iterator[tuple[Plain | None, Plain, Plain]]:
    """(configuration, coordinates, what of a search it has) at each lambda that the block asks for; None as
    configuration where the arm's own best is not known yet.
    """
    arm = plain["decay"]["mode"]
    if block.lambdas:
        for multiple in ladder.multiples:
            yield at_multiple(plain, multiple), {"choice": "grid", "multiple": multiple}, {}
    elif block.own:
        names = plain["optimizer"]["name"], arm
        found = own.get((block.own, size, *names), own.get((block.own, None, *names)))
        how = {"choice": "own", "arm": arm, "multiple": (found or {}).get("multiple")}
        trial = {axis: value for axis, value in (found or {}).items() if axis != "multiple"}
        yield (None if found is None else with_values(plain, found)), how, trial
    else:
        yield plain, {"choice": "tuned"}, {}


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


def total_seconds(points: Sequence[Point]) -> float:
    """Core seconds of all distinct runs of the points, done or not."""
    costs = {}
    for point in points:
        for seed in point.cells:
            costs[repr(identity_of(point.on(seed)))] = point.core_seconds or 0.0
    return sum(costs.values())
