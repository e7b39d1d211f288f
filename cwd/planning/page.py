"""A plan as a document, for the renderer that every table has."""

from __future__ import annotations

from cwd.evidence.document import Document, Table
from cwd.evidence.tables import where_of
from cwd.planning.numbers import data_of, disk
from cwd.planning.plan import Kind, Line, Plan
from cwd.planning.remarks import devices_of, hours_name, name_of, remarks_of
from cwd.planning.strength import Strength, hardest
from cwd.planning.words import HOUR, byte_unit, bytes_in, duration, hours_of, short

COUNTS = ("runs", "done", "shared", "missing", "waiting")
LAYOUT = ("size", "optimizer", "parameters", "trained", "sharding", "micro-batch", "peak", "of", "fits")
MEMORY = (
    "size", "optimizer", "weights", "gradients", "state", "EMA", "activations", "copies", "sharing", "step", "peak",
)  # fmt: skip
STRENGTH = (
    "artifact", "claim", "where", "sd from", "published", "sd", "pairs", "seeds planned", "seeds needed",
    "they resolve",
)  # fmt: skip


def page(plan: Plan) -> Document:
    """Its tables, and every assumption behind them."""
    parts = [_runs_table(plan)]
    if plan.kinds:
        parts += [_layout_table(plan), _memory_table(plan), _disk_table(plan)]
    if plan.strengths:
        parts.append(_strength_table(plan))
    names = plan.request.names
    name = f"plan_{names[0]}" if len(names) == 1 else "plan"
    what = ", ".join(names) if names else "every artifact"
    title = f"{what}, {plan.request.scale} scale, on {devices_of(plan)}"
    return Document(name, title, (), tuple(parts), tuple(remarks_of(plan)), data_of(plan))


def _runs_table(plan: Plan) -> Table:
    """A line for each artifact and size, and one for all of them with each run once."""
    rows = [_run_row(plan, line, line.demand.artifact, line.demand.size) for line in plan.lines]
    rows.append(_run_row(plan, plan.whole, "each run once", ""))
    cost = ["cost"] if plan.request.price is not None else []
    seen = f"{' or '.join(_units(plan)) or 'tokens'} a run"
    columns = ["artifact", "size", "needs", *COUNTS, seen, "FLOPs to do", hours_name(plan), "wall time", *cost]
    return Table("Runs to do", tuple(columns), tuple(rows), 3)


def _units(plan: Plan) -> list[str]:
    """What the runs count: tokens, images or both."""
    return sorted(plan.whole.seen, reverse=True)


def _run_row(plan: Plan, line: Line, name: str, size: str) -> tuple[str, ...]:
    demand, hours = line.demand, line.time.seconds / HOUR
    needs = "; ".join(line.needs) if line is not plan.whole else ""
    counts = (len(demand.runs), len(demand.runs) - len(demand.missing), len(demand.shared), len(demand.missing))
    if not demand.runs:
        return (name, size, needs, *("-" for _ in range(9 if plan.request.price is None else 10)))
    seen = ", ".join(
        " to ".join(dict.fromkeys(map(short, line.seen[unit]))) + (f" {unit}" if len(_units(plan)) > 1 else "")
        for unit in sorted(line.seen, reverse=True)
    )
    flops = f"{line.flops:.3g}" if line.seen else "-"
    price = plan.request.price
    spent = [hours_of(hours), duration(line.time.seconds / plan.request.device.count)]
    spent += [] if price is None else [f"{hours * price:,.0f}"]
    if demand.missing and not line.time.sources:  # nothing says how long they take
        spent = ["-"] * len(spent)
    numbers = (f"{count:,}" for count in (*counts, len(demand.waiting)))
    return (name, size, needs, *numbers, seen or "-", flops, *spent)


def _layout_table(plan: Plan) -> Table:
    """A line for each size and optimizer: how it is laid out, and whether that fits."""
    unit = byte_unit(kind.layout.memory.peak for kind in plan.kinds)
    rows = tuple(_layout_row(plan, kind, unit) for kind in plan.kinds)
    return Table(f"Layout on {devices_of(plan)}, peak of one, {unit}", LAYOUT, rows, 2)


def _layout_row(plan: Plan, kind: Kind, unit: str) -> tuple[str, ...]:
    work, setting = kind.works[0], kind.layout.setting
    return (
        kind.size,
        name_of(kind.optimizer),
        short(work.parameters),
        "all" if work.trained == work.parameters else short(work.trained),
        setting.sharding,
        f"{setting.micro_batch} {kind.layout.shape.rows}",
        bytes_in(kind.layout.memory.peak, unit),
        bytes_in(plan.request.device.usable, unit),
        "yes" if kind.layout.fits else "no",
    )


def _memory_table(plan: Plan) -> Table:
    """What the peak consists of; without a column for an average of the weights where there is none."""
    unit = byte_unit(kind.layout.memory.peak for kind in plan.kinds)
    averaged = any(kind.layout.memory.average for kind in plan.kinds)
    columns = [name for name in MEMORY if averaged or name != "EMA"]
    rows = []
    for kind in plan.kinds:
        parts = {name: size for name, size in vars(kind.layout.memory).items() if averaged or name != "average"}
        rows.append((kind.size, name_of(kind.optimizer), *(bytes_in(size, unit) for size in parts.values())))
    return Table(f"Memory on one device, {unit}", tuple(columns), tuple(rows), 2)


def _disk_table(plan: Plan) -> Table:
    """What the runs to do leave, and what lies there while they go on."""
    columns = ("size", "optimizer", "runs", "final weights", "records", "checkpoints of a run")
    whole = disk(plan.kinds)
    unit = byte_unit(whole)
    rows = [
        (kind.size, name_of(kind.optimizer), str(kind.runs), *(bytes_in(one, unit) for one in disk([kind])))
        for kind in plan.kinds
    ]
    runs = sum(kind.runs for kind in plan.kinds)
    rows.append(("all", "", str(runs), *(bytes_in(one, unit) for one in whole)))
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
