"""Tables of an artifact's results, of its claims' findings, and of all claims: the ledger."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from cwd.evidence.artifact_files import Artifact, Layout
from cwd.evidence.artifacts import Point, text_of
from cwd.evidence.claims import Finding, overall
from cwd.evidence.document import PUBLISHED, Table
from cwd.evidence.items import Paired, pairs_of
from cwd.evidence.measures import measure, metric_name
from cwd.evidence.published import look_up
from cwd.evidence.study import State
from cwd.evidence.theory import Check, select

NAMES = {
    "adamw": "AdamW",
    "lion": "Lion",
    "muon": "Muon",
    "sgd": "SGD",
    "lr": "rate",
    "decay_schedule": "lambda over time",
}
FINDINGS = (
    "claim", "where", "seeds", "mean", "95% interval (t)", "95% (bootstrap)", "mean/sd", "published", "p (Holm)",
    "verdict", "seeds needed",
)  # fmt: skip
SLOTS = ("rows", "columns")


def name_of(value: Any) -> str:
    """A coordinate or an axis as people read it."""
    return NAMES.get(text_of(value), text_of(value))


def grid_tables(state: State) -> list[Table]:
    """The artifact's own table, once for each metric if that is not one of its axes: mean and spread over seeds, and
    below each row what the paper printed.
    """
    layout = state.artifact.layout
    points = [point for point in state.points if point.matches(layout.where)]
    if "metric" in (*layout.rows, *layout.columns):
        return [_grid(state.artifact, state.scale, points, layout.metrics, state.artifact.title)]
    several = len(layout.metrics) > 1
    titles = {name: f"{state.artifact.title}: {name}" if several else state.artifact.title for name in layout.metrics}
    return [_grid(state.artifact, state.scale, points, (name,), titles[name]) for name in layout.metrics]


def _grid(artifact: Artifact, scale: str, points: Sequence[Point], metrics: Sequence[str], title: str) -> Table:
    layout = artifact.layout
    cells: dict[tuple[Any, ...], dict[tuple[Any, ...], tuple[Point, str]]] = {}
    columns: dict[tuple[Any, ...], None] = {}
    for point, metric in itertools.product(points, metrics):
        named = {**point.coordinates, "metric": metric_name(metric)}
        row, column = (_label(named, axes) for axes in (layout.rows, layout.columns))
        cells.setdefault(row, {})[column] = point, metric
        columns[column] = None
    rows = []
    for row, found in cells.items():
        head = _row_names(layout, row, [point for point, _ in found.values()], scale)
        shown = [cell_text(*found[column]) if column in found else "" for column in columns]
        printed = _as_printed([_printed(artifact, *found[column]) if column in found else None for column in columns])
        rows.append((*head, *shown))
        if any(printed):
            rows.append((*("" for _ in head[:-1]), PUBLISHED, *printed))
    names = (*(name_of(axis) for axis in layout.rows), *(" ".join(map(name_of, column)) for column in columns))
    return Table(title, names, tuple(rows), len(layout.rows))


def _label(coordinates: Mapping[str, Any], axes: Sequence[str]) -> tuple[Any, ...]:
    return tuple(coordinates.get(axis) for axis in axes)


def _row_names(layout: Layout, row: tuple[Any, ...], points: Sequence[Point], scale: str) -> list[str]:
    names = [name_of(value) for value in row]
    if "size" in layout.rows and scale != "paper":
        names[layout.rows.index("size")] += stand_in(points)
    return names


def stand_in(points: Iterable[Point]) -> str:
    """ " (0.07M here)": the parameters of what stands for a size; empty without a run that is done."""
    counts = [cell.summary["parameters"] for point in points for cell in point.cells.values() if cell.summary]
    return f" ({counts[0] / 1e6:.2g}M here)" if counts else ""


def values_of(point: Point, metric: str) -> dict[int, Any]:
    """The metric on each seed that is done: the report's seeds, or the tuning's where there are no others."""
    done = point.done(point.seeds or point.tuning_seeds)
    found = {seed: measure(cell, metric) for seed, cell in done.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def cell_text(point: Point, metric: str) -> str:
    """ "1.6301 ± 0.0123" (standard deviation over seeds), "(3 of 5)" where some are not done; "-" without a run."""
    values = list(values_of(point, metric).values())
    wanted = point.seeds or point.tuning_seeds
    diverged = sum(point.cells[seed].state == "diverged" for seed in wanted if seed in point.cells)
    tail = [f"{len(values)} of {len(wanted)}"] if 0 < len(values) < len(wanted) else []
    tail += [f"{diverged} diverged"] if diverged else []
    note = f" ({', '.join(tail)})" if tail else ""
    if not values:
        return "-" + note
    if not all(isinstance(value, float) for value in values):
        return ", ".join(dict.fromkeys(f"{v:,}" if isinstance(v, int) else str(v) for v in values))
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}{note}"


def _printed(artifact: Artifact, point: Point, metric: str) -> Any:
    if artifact.layout.published is None:
        return None
    named = {**point.coordinates, "metric": metric_name(metric)}
    value = look_up(artifact.layout.published, named, artifact.aliases)
    return None if isinstance(value, dict) else value


def _as_printed(values: Sequence[Any]) -> list[str]:
    """A row of published values with as many decimals as the paper prints, which YAML's 2.7 for 2.70 has lost."""
    decimals = max((len(str(value).partition(".")[2]) for value in values if isinstance(value, float)), default=0)
    shown = [f"{value:.{decimals}f}" if isinstance(value, float) else value for value in values]
    return ["" if value is None else str(value) for value in shown]


def findings_tables(findings: Sequence[Finding]) -> list[Table]:
    """A line for each comparison, and in a table of its own, as it has no seeds, for what each theory check found."""
    compared = tuple((one.claim.id, where_of(one), *numbers_of(one)) for one in findings if one.claim.test != "check")
    checked = tuple(checked_of(one) for one in findings if one.claim.test == "check")
    tables = [Table("What the claims' comparisons say", FINDINGS, compared, 2)] if compared else []
    names = ("claim", "check", "measured", "expected", "verdict")
    return tables + ([Table("What the checks say", names, checked, 2)] if checked else [])


def items_tables(state: State) -> list[Table]:
    """The pairs of runs behind the claims, item by item; [] where nothing was evaluated."""
    if state.suite is None or state.scale == "smoke":
        return []
    cells = [cell for point in state.points for cell in point.cells.values()]
    records = {cell.record.key: cell.record for cell in cells if cell.record}
    rows = [
        (one.claim.id, where_of(one), str(seed), *_item_numbers(found))
        for one in state.findings
        for seed, found in pairs_of(
            one.claim, state.suite, {seed: [records[key] for key in keys] for seed, keys in one.runs.items()}
        )
    ]
    names = ("claim", "where", "seed", "items", "only a right", "only b right", "mean", "95% interval (items)")
    return [Table("Two models on the same items", names, tuple(rows), 2)] if rows else []


def _item_numbers(found: Paired) -> tuple[str, ...]:
    counts = (f"{found.items:,}", f"{found.better:,}", f"{found.worse:,}")
    return (*counts, _signed(found.mean), _interval(found.low, found.high))


def checked_of(one: Finding) -> tuple[str, ...]:
    """What a theory check found, as text: claim, check, measured, expected, verdict."""
    measured = "-" if one.measured is None else f"{one.measured:.4g}"
    expected = f"{one.claim.expect} {' and '.join(f'{bound:.7g}' for bound in one.claim.bound)}"
    return (one.claim.id, where_of(one), measured, expected, one.verdict)


def where_of(finding: Finding) -> str:
    """ "338m AdamW"; a lambda carries its name."""
    named = {"lambda": "lambda ", "multiple": "x "}
    return " ".join(f"{named.get(axis, '')}{name_of(value)}" for axis, value in finding.coordinates.items())


def numbers_of(one: Finding) -> tuple[str, ...]:
    """A comparison's columns of FINDINGS, from the third on, as text; no number of a smoke run."""
    seeds = f"{len(one.values)} of {one.planned}"
    if one.estimate is None or one.verdict == "smoke":
        return (seeds, *_dashes(4), _signed(one.published), "-", one.verdict, "-")
    found, effect = one.estimate, one.effect_in_sd
    return (
        seeds,
        _signed(found.mean),
        _interval(found.low, found.high),
        _interval(found.bootstrap_low, found.bootstrap_high),
        "-" if effect is None else f"{effect:+.2f}",
        _signed(one.published),
        "-" if one.p is None else f"{one.p:.2g}",
        one.verdict,
        needed_text(one),
    )


def needed_text(one: Finding) -> str:
    """How many seeds would resolve the published effect; "-" where there is none to resolve."""
    if one.published is None or one.estimate is None or one.estimate.n < 3:
        return "-"
    return "over 10,000" if one.seeds_needed is None else str(one.seeds_needed)


def _dashes(count: int, first: str = "-") -> tuple[str, ...]:
    return (first, *("-" for _ in range(count - 1)))


def _signed(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:+.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "one seed: none" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def check_tables(layout: Layout, checks: Sequence[Check]) -> list[Table]:
    """What each theory check found, in the fields that the layout names: a column for each check."""
    rows = [
        (path, *(", ".join(f"{value:.4g}" for value in select(check.summary, path)) or "-" for check in checks))
        for path in layout.fields
    ]
    return [Table("What was computed", ("field", *(check.name for check in checks)), tuple(rows), 1)] if rows else []


def ledger_table(states: Sequence[State]) -> Table:
    """A line for each claim of all artifacts: its verdict, and how many of its comparisons have which."""
    rows = []
    for state in states:
        for claim in state.artifact.claims:
            mine = [one for one in state.findings if one.claim is claim]
            says = claim.says + (" (a control, not the paper's)" if claim.control else "")
            rows.append((state.artifact.name, claim.id, overall(mine), told_of(mine), says))
    return Table("Every claim", ("artifact", "claim", "verdict", "comparisons", "the paper says"), tuple(rows), 5)


def told_of(findings: Sequence[Finding]) -> str:
    """ "3 supported, 1 unresolved": the verdicts of a claim's comparisons; empty where there is only one."""
    counts = [one.verdict for one in findings]
    told = ", ".join(f"{counts.count(name)} {name}" for name in dict.fromkeys(counts))
    return told if len(counts) > 1 else ""
