"""A plan as a document, for the renderer that every table has."""

from __future__ import annotations

from collections.abc import Iterable

from cwd.evidence.document import Document, Table
from cwd.evidence.tables import NAMES, where_of
from cwd.planning.demand import THEORY
from cwd.planning.devices import USABLE
from cwd.planning.forecast import REASON, UTILISATION
from cwd.planning.numbers import data_of, disk, token_data
from cwd.planning.plan import Kind, Line, Plan
from cwd.planning.strength import Strength, hardest

UNITS = {"GB": 1e9, "MB": 1e6}
HOUR = 3600.0
RUNS = (
    "artifact", "size", "needs", "runs", "done", "shared", "missing", "waiting", "tokens a run", "FLOPs to do",
)  # fmt: skip
MEMORY = (
    "size", "optimizer", "sharding", "micro-batch", "parameters", "weights", "gradients", "state", "activations",
    "copies", "sharing", "step", "peak", "of", "fits",
)  # fmt: skip
STRENGTH = (
    "artifact", "claim", "where", "sd from", "published", "sd", "pairs", "seeds planned", "seeds needed",
    "they resolve",
)  # fmt: skip
PAPER_HOURS = 20_000  # H100 hours for all experiments, as the paper states (published.yaml, paper.compute)
FLOPS = (
    "FLOPs: 6 x the parameters that multiply + 12 x layers x length x width of attention for each token, causal not "
    "halved; a third of it in evaluations. Optimizer, data and what is computed again are not counted."
)
MEMORY_MODEL = (
    "Memory: float32 weights, gradients and state; activations of the model's own code, traced without memory, eager "
    "kernels; copies: weights in bfloat16, masks, gradients being born; sharing: what several devices add; step: the "
    "optimizer's. The peak is not the sum, as not all of it is there at once."
)
SEEDS = (
    "Seeds: paired t tests at 0.05 over the comparisons of the table, noncentral t, at the spread of runs that are "
    "done; a spread at small scale is not that of the paper's. They resolve: the least effect that the planned seeds "
    "find in 4 of 5 studies."
)


def page(plan: Plan) -> Document:
    """Its tables, and every assumption behind them."""
    parts = [_runs_table(plan)]
    if plan.kinds:
        parts += [_memory_table(plan), _disk_table(plan)]
    if plan.strengths:
        parts.append(_strength_table(plan))
    names = plan.request.names
    name = f"plan_{names[0]}" if len(names) == 1 else "plan"
    what = ", ".join(names) if names else "every artifact"
    title = f"{what}, {plan.request.scale} scale, on {_devices(plan)}"
    return Document(name, title, (), tuple(parts), tuple(_remarks(plan)), data_of(plan))


def _devices(plan: Plan) -> str:
    device = plan.request.device
    return f"{device.count} {'cores' if device.is_cpu else device.name.upper()}"


def _unit(plan: Plan) -> str:
    return "core-hours" if plan.request.device.is_cpu else "GPU-hours"


def _runs_table(plan: Plan) -> Table:
    """A line for each artifact and size, and one for all of them with each run once."""
    rows = [_run_row(plan, line, line.demand.artifact, line.demand.size) for line in plan.lines]
    rows.append(_run_row(plan, plan.whole, "each run once", ""))
    columns = [*RUNS, _unit(plan), "wall time", *(["cost"] if plan.request.price is not None else [])]
    return Table("Runs to do", tuple(columns), tuple(rows), 3)


def _run_row(plan: Plan, line: Line, name: str, size: str) -> tuple[str, ...]:
    demand, hours = line.demand, line.time.seconds / HOUR
    needs = "; ".join(line.needs) if line is not plan.whole else ""
    counts = (len(demand.runs), len(demand.runs) - len(demand.missing), len(demand.shared), len(demand.missing))
    if not demand.runs:
        return (name, size, needs, *("-" for _ in range(9 if plan.request.price is None else 10)))
    tokens = " to ".join(dict.fromkeys(_short(one) for one in line.tokens or ())) or "-"
    flops = f"{line.flops:.3g}" if line.tokens else "-"
    price = plan.request.price
    spent = [_hours(hours), duration(line.time.seconds / plan.request.device.count)]
    spent += [] if price is None else [f"{hours * price:,.0f}"]
    if demand.missing and not line.time.sources:  # nothing says how long they take
        spent = ["-"] * len(spent)
    numbers = (f"{count:,}" for count in (*counts, len(demand.waiting)))
    return (name, size, needs, *numbers, tokens, flops, *spent)


def _memory_table(plan: Plan) -> Table:
    """A line for each size and optimizer, on one device."""
    unit = _byte_unit(kind.layout.memory.peak for kind in plan.kinds)
    rows = tuple(_memory_row(plan, kind, unit) for kind in plan.kinds)
    return Table(f"Memory on one device, {unit}", MEMORY, rows, 3)


def _memory_row(plan: Plan, kind: Kind, unit: str) -> tuple[str, ...]:
    memory, setting = kind.layout.memory, kind.layout.setting
    parts = (*vars(memory).values(), plan.request.device.usable)  # in the order of MEMORY
    return (
        kind.size,
        _name(kind.optimizer),
        setting.sharding,
        str(setting.micro_batch),
        _short(kind.works[0].parameters),
        *(_bytes(part, unit) for part in parts),
        "yes" if kind.layout.fits else "no",
    )


def _disk_table(plan: Plan) -> Table:
    """What the runs to do leave, and what lies there while they go on."""
    columns = ("size", "optimizer", "runs", "final weights", "records", "checkpoints of a run")
    whole = disk(plan.kinds)
    unit = _byte_unit(whole)
    rows = [
        (kind.size, _name(kind.optimizer), str(kind.runs), *(_bytes(one, unit) for one in disk([kind])))
        for kind in plan.kinds
    ]
    runs = sum(kind.runs for kind in plan.kinds)
    rows.append(("all", "", str(runs), *(_bytes(one, unit) for one in whole)))
    return Table(f"Disk, {unit}", columns, tuple(rows), 2)


def _strength_table(plan: Plan) -> Table:
    rows = tuple(_strength_row(name, one, one.finding.planned or plan.seeds) for name, one in _shown(plan))
    return Table("What the seeds can resolve, power 0.8", STRENGTH, rows, 4)


def _strength_row(name: str, one: Strength, planned: int) -> tuple[str, ...]:
    names, spread = (name, one.finding.claim.id, where_of(one.finding)), one.spread
    if spread is None:
        return (*names, "no pairs yet", f"{one.effect:+.4f}", *"--", str(planned), *"--")
    origin = f"{spread.scale}, {'all comparisons' if spread.pooled else 'the same'}"
    needed = f"{one.needed:,}" if one.needed else "> 10,000"
    least = f"{one.detectable:.4f}" if one.detectable is not None else "-"
    return (*names, origin, f"{one.effect:+.4f}", f"{spread.sd:.4f}", str(spread.pairs), str(planned), needed, least)


def _shown(plan: Plan) -> list[tuple[str, Strength]]:
    """Every comparison of the artifacts that were named; of all artifacts, the hardest of each claim."""
    if plan.request.names:
        return list(plan.strengths)
    names = dict.fromkeys(name for name, _ in plan.strengths)
    return [(name, one) for name in names for one in hardest(s for n, s in plan.strengths if n == name)]


def _remarks(plan: Plan) -> Iterable[str]:
    device, request = plan.request.device, plan.request
    waiting = f"{_hours(plan.whole.waiting.seconds / HOUR)} {_unit(plan)}"
    yield (
        "Runs: shared, those that another artifact asks for too; waiting, at most so many more once each arm's best "
        f"lambda is chosen ({waiting}). Each run once: what two lines share is counted once."
    )
    yield from _time_remarks(plan)
    yield FLOPS
    yield (
        f"Device: {device.source}; {device.flops / 1e12:g} TFLOPS; of {device.memory / 1e9:.4g} GB {USABLE:.0%} is "
        "planned with, the rest is the context's, the libraries' and the allocator's."
    )
    if plan.kinds:
        yield from _memory_remarks(plan)
    if plan.strengths:
        yield SEEDS
    if not request.names and request.scale == "paper" and not device.is_cpu:
        yield _against_the_paper(plan)


def _time_remarks(plan: Plan) -> Iterable[str]:
    device, forecaster, price = plan.request.device, plan.forecaster, plan.request.price
    how = "each core trains runs of its own" if device.is_cpu else "every run takes all devices, one after another"
    between, source = forecaster.between
    if plan.whole.time.sources:
        yield f"Time: {how}; seconds from {plan.whole.time}; {between:.1f} s between two runs, {source}."
    if any("assumed" in name for name in plan.whole.time.sources):
        yield f"MFU {UTILISATION:g}, the part of the peak that training reaches: {REASON}. --mfu says another."
    if plan.whole.time.unknown:
        yield f"Of {plan.whole.time.unknown} runs nothing says how long they take."
    if price is None:
        yield "Cost: PRICE=2.50, for one device and hour, adds a column."
    else:
        yield f"Cost: at {price:g} for one device and hour; idle time and disk are not counted."


def _memory_remarks(plan: Plan) -> Iterable[str]:
    yield MEMORY_MODEL
    told = [(kind.size, _shape_remark(kind)) for kind in plan.kinds]
    for remark in dict.fromkeys(remark for _, remark in told):
        yield f"{', '.join(dict.fromkeys(size for size, one in told if one == remark))}: {remark}"
    if not plan.request.device.is_cpu:
        yield (
            "Micro-batch (machine.micro_batch_size): the largest that fits, with the simplest sharding that fits: "
            "none, over a node's devices (hybrid), over all (full)."
        )
    for kind in plan.kinds:
        if not kind.layout.fits:
            found = " or ".join(kind.remedies) or "no option here; it needs larger or more devices"
            yield f"{kind.size}, {_name(kind.optimizer)}: does not fit; what helps: {found}."
    size = token_data(plan.kinds)
    tokens = f"{_bytes(size, _byte_unit([size]))} {_byte_unit([size])}"
    yield (
        "Disk: float32 weights of every run, for good; checkpoints while it goes on (two, and one being written); a "
        f"token file from which no run sees a token twice takes {tokens}."
    )


def _shape_remark(kind: Kind) -> str:
    """What of the pass is not kept."""
    shape = kind.layout.shape
    activations = "computed again in the backward pass" if shape.checkpointing else "kept, without --checkpointing"
    logits = "never there as a whole" if shape.chunked_loss else "there as a whole, without --chunked-loss"
    scores = "never there as a whole (fused attention)" if shape.fused else "there as a whole (attention is not fused)"
    return f"activations of the layers are {activations}; logits are {logits}; scores are {scores}."


def _against_the_paper(plan: Plan) -> str:
    hours, once = plan.whole.time.seconds / HOUR, plan.all_one_seed.seconds / HOUR
    absent = [need for need in plan.whole.needs if need != THEORY and not need.startswith("the tuning of")]
    left_out = f" (not those that need {'; '.join(absent)})" if absent else ""
    return (
        f"The paper states about {PAPER_HOURS:,} H100 hours for all its experiments. The runs here that can be planned"
        f"{left_out} take {once:,.0f} hours of this device on one seed each; with {plan.seeds} seeds, less what is "
        f"done, {hours:,.0f}."
    )


def duration(seconds: float) -> str:
    """As people say it: "42 s", "12 min", "3.5 h", "8.1 days"."""
    for size, unit in ((86_400 * 2, "days"), (5400, "h"), (90, "min")):
        if seconds >= size:
            whole = {"days": 86_400, "h": 3600, "min": 60}[unit]
            return f"{seconds / whole:,.3g} {unit}" if seconds / whole < 1000 else f"{seconds / whole:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _short(count: float) -> str:
    """ "338M", "2.32B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def _byte_unit(sizes: Iterable[float]) -> str:
    """GB, or MB where nothing reaches one."""
    return "GB" if max(sizes, default=0) >= UNITS["GB"] else "MB"


def _bytes(size: float, unit: str) -> str:
    value = size / UNITS[unit]
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _name(optimizer: str) -> str:
    return NAMES.get(optimizer, optimizer)
