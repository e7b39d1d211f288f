"""The plan: from artifacts to runs, time, memory, disk and cost. cwd.planning.page shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cwd.evidence.artifact_files import SCALES, artifact_names, load_artifact
from cwd.evidence.artifacts import base_name
from cwd.evidence.study import State, Study
from cwd.planning.bases import Bases
from cwd.planning.demand import Demand, demands_of, together
from cwd.planning.devices import Device
from cwd.planning.evaluating import Evaluations, evaluations_of
from cwd.planning.forecast import Forecaster, Total, ladder_seconds, past_runs, total
from cwd.planning.layout import Layout, Wishes, check_devices, lay_out, remedies
from cwd.planning.strength import Strength, strengths
from cwd.planning.work import Unplanned, Work, work_of

Plain = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is to be planned, and on what. ``price`` is of a device and hour; ``utilisation`` the MFU, None: see
    :class:`cwd.planning.forecast.Forecaster`. ``vocabularies``: ids of tokenizers that the configuration does not know.
    """

    names: tuple[str, ...]  # of artifacts; none: all
    scale: str
    runs: Path
    device: Device
    seeds: int | None = None
    price: float | None = None
    utilisation: float | None = None
    wishes: Wishes = Wishes()
    vocabularies: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """What one demand costs.

    Attributes:
        seen: unit -> the tokens or images of one run, least and most.
        flops: of the runs to do.
        time: device seconds of the runs to do.
        waiting: those of the runs that wait for a choice of lambda, at most.
        needs: what must exist before the rest can be planned.
    """

    demand: Demand
    seen: dict[str, tuple[int, int]]
    flops: float
    time: Total
    waiting: Total
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """Runs of one size and optimizer, which differ in decay and seed: their layout and what they leave.

    ``refused`` are the options that were wished for and that the trainer has not for such models.
    """

    size: str
    optimizer: str
    works: tuple[Work, ...]
    runs: int  # to do
    layout: Layout
    remedies: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A whole plan. ``all_one_seed`` is the time of all runs of the lines, done or not, on one seed each."""

    request: Request
    lines: tuple[Line, ...]
    whole: Line
    kinds: tuple[Kind, ...]
    strengths: tuple[tuple[str, Strength], ...]
    seeds: int
    forecaster: Forecaster
    all_one_seed: Total
    evaluations: tuple[Evaluations, ...]


def make_plan(request: Request, say: Say) -> Plan:
    """Plans.

    Raises:
        UserError: an artifact, a device or an option that does not fit.
    """
    names = request.names or tuple(artifact_names())
    for name in names:
        load_artifact(name)
    say("reading the runs that are there")
    study = Study(request.scale, request.runs, request.seeds)
    states = {name: study.state(name) for name in artifact_names()}
    works = _Works(request, list(states.values()))
    past = past_runs(request.runs, request.device.match)
    works.vocabularies |= {one.config["dataset"].get("tokenizer"): one.ids for one in past if one.ids}
    forecaster = Forecaster(
        past,
        ladder_seconds(list(states.values())) if request.device.is_cpu else [],
        works.flops,
        request.device.flops,
        request.utilisation,
    )
    demands = [demand for demand in demands_of(list(states.values())) if demand.artifact in names]
    shown = demands if request.names else [together([d for d in demands if d.artifact == name]) for name in names]
    lines = tuple(_line(demand, works, forecaster, request.device) for demand in shown)
    whole = _line(together(demands), works, forecaster, request.device)
    kinds = tuple(_kinds(demands, works, request, say))
    say("what the seeds can resolve")
    seeds = request.seeds or study.ladder.seeds
    evaluations = (evaluations_of(states[name], works.find) for name in names)
    return Plan(
        request, lines, whole, kinds, tuple(_strengths(names, states, request, seeds)), seeds, forecaster,
        _once(demands, forecaster, request.device), tuple(one for one in evaluations if one),
    )  # fmt: skip


class _Works:
    """The size of each run, once for all that differ in seed."""

    def __init__(self, request: Request, states: Sequence[State]) -> None:
        self.vocabularies, self._on_cpu = dict(request.vocabularies), request.device.is_cpu
        bases = [point for state in states for point in state.bases]
        self._bases = Bases(request.runs, {base_name(one.coordinates["size"]): one.config or {} for one in bases})

    def of(self, config: Plain) -> Work:
        """Raises Unplanned."""
        return work_of(config, self.vocabularies, self._on_cpu, self._bases)

    def find(self, config: Any) -> Work | None:
        """None if it is not known."""
        try:
            return self.of(config)
        except Unplanned:
            return None

    def flops(self, config: Any) -> float | None:
        """Operations of the run; None if they are not known."""
        work = self.find(config)
        return work.flops if work else None


def _line(demand: Demand, works: _Works, forecaster: Forecaster, device: Device) -> Line:
    known, needs = [], list(demand.needs)
    for run in demand.runs.values():
        try:
            known.append((run, works.of(run.config)))
        except Unplanned as error:
            needs += [str(error)] if str(error) not in needs else []
    seen: dict[str, list[int]] = {}
    for _, work in known:
        seen.setdefault(work.shape.unit, []).append(work.seen)
    return Line(
        demand,
        {unit: (min(counts), max(counts)) for unit, counts in seen.items()},
        sum(work.flops for run, work in known if not run.ended),
        total(forecaster, (run.config for run in demand.missing.values()), device.together),
        total(forecaster, demand.waiting, device.together),
        tuple(needs),
    )


def _once(demands: Sequence[Demand], forecaster: Forecaster, device: Device) -> Total:
    """The time of each configuration on one seed."""
    distinct: dict[str, Plain] = {}
    for demand in demands:
        for run in demand.runs.values():
            distinct.setdefault(repr({**run.config, "seed": 0}), run.config)
    return total(forecaster, distinct.values(), device.together)


def _kinds(demands: Sequence[Demand], works: _Works, request: Request, say: Say) -> Iterable[Kind]:
    alike: dict[tuple[Any, ...], tuple[str, str, dict[str, tuple[Plain, Work]]]] = {}
    for demand in demands:
        for key, run in demand.runs.items():
            work, optimizer = works.find(run.config), run.config["optimizer"]["name"]
            if work and not run.ended:
                kind = (work.shape, optimizer, work.batch, run.config["machine"]["micro_batch_size"])
                alike.setdefault(kind, (demand.size, optimizer, {}))[2][key] = run.config, work
    ordered = sorted(alike.items(), key=lambda pair: (next(iter(pair[1][2].values()))[1].parameters, pair[1][1]))
    for (shape, _, batch, micro_batch), (size, optimizer, runs) in ordered:
        distinct = {work.held: work for _, work in runs.values()}
        check_devices(request.device, next(iter(distinct.values())), size)
        say(f"memory of {size}, {optimizer}")
        # The trainer takes a device's share at once if nobody says otherwise; on GPUs the plan says what to say.
        at_once = request.wishes.micro_batch or micro_batch or (batch if request.device.is_cpu else None)
        wishes = replace(request.wishes, micro_batch=at_once)
        layout = lay_out(list(distinct.values()), request.device, wishes)
        help_ = () if layout.fits else tuple(remedies(list(distinct.values()), request.device, wishes))
        count, refused = len(runs), tuple(request.wishes.refused(shape))
        yield Kind(size, optimizer, tuple(distinct.values()), count, layout, help_, refused)


def _strengths(
    names: Sequence[str], states: dict[str, State], request: Request, seeds: int
) -> Iterable[tuple[str, Strength]]:
    studies = [Study(scale, request.runs) for scale in SCALES if scale not in ("smoke", request.scale)]
    for name in names:
        if states[name].artifact.ledger and any(one.published is not None for one in states[name].findings):
            others = [study.state(name) for study in studies]
            for one in strengths(states[name], others, states[name].artifact.seeds or seeds):
                yield name, one
