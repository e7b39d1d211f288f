"""A plan's numbers, unrounded: sums over its runs, and all of it as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cwd.planning.forecast import Total
from cwd.planning.plan import Kind, Line, Plan
from cwd.planning.strength import Strength


def disk(kinds: Sequence[Kind]) -> tuple[float, float, float]:
    """Bytes of all final weights, of all records, and of the checkpoints of one run, the largest."""
    weights = sum(kind.runs * kind.works[0].weights for kind in kinds)
    records = sum(kind.runs * kind.works[0].record for kind in kinds)
    return weights, records, max((kind.works[0].checkpoints for kind in kinds), default=0)


def token_data(kinds: Sequence[Kind]) -> float:
    """Bytes of a packed token file from which the longest run would see no token twice."""
    return max((work.token_bytes for kind in kinds for work in kind.works), default=0)


def data_of(plan: Plan) -> dict[str, Any]:
    """The plan for JSON: bytes, seconds and operations, unrounded."""
    request = plan.request
    return {
        "scale": request.scale,
        "device": asdict(request.device),
        "price": request.price,
        "seeds": plan.seeds,
        "lines": [_line_data(line) for line in plan.lines],
        "each_run_once": _line_data(plan.whole),
        "memory": [
            {"size": kind.size, "optimizer": kind.optimizer, "runs": kind.runs, "fits": kind.layout.fits,
             "parameters": kind.works[0].parameters, "trained": kind.works[0].trained, "unit": kind.layout.shape.unit,
             **asdict(kind.layout.setting), **asdict(kind.layout.memory)}
            for kind in plan.kinds
        ],
        "disk": dict(zip(("weights", "records", "checkpoints"), disk(plan.kinds), strict=True)),
        "token_data": token_data(plan.kinds),
        "evaluations": [asdict(one) for one in plan.evaluations],
        "strengths": [_strength_data(name, one) for name, one in plan.strengths],
    }  # fmt: skip


def _line_data(line: Line) -> dict[str, Any]:
    demand = line.demand
    return {
        "artifact": demand.artifact,
        "size": demand.size,
        "needs": list(line.needs),
        "runs": len(demand.runs),
        "missing": len(demand.missing),
        "shared": len(demand.shared),
        "waiting": len(demand.waiting),
        **line.seen,
        "flops": line.flops,
        **_total_data("", line.time),
        **_total_data("waiting_", line.waiting),
    }


def _total_data(prefix: str, found: Total) -> dict[str, Any]:
    return {
        f"{prefix}device_seconds": found.seconds,
        f"{prefix}sources": found.sources,
        f"{prefix}unknown": found.unknown,
    }


def _strength_data(name: str, one: Strength) -> dict[str, Any]:
    return {
        "artifact": name,
        "claim": one.finding.claim.id,
        "where": one.finding.coordinates,
        "effect": one.effect,
        "spread": asdict(one.spread) if one.spread else None,
        "seeds_needed": one.needed,
        "detectable": one.detectable,
    }
