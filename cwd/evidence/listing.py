"""Runs in the terminal: list and filter them, show one, compare two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cwd.errors import UserError, nearest
from cwd.runs import Record, all_records, read_metrics
from cwd.runs.costs import checkpoint_costs

NUMBERS = ("lr", "lambda", "seed", "step", "loss", "accuracy")
SHORT = {"optimizer": "optimizer.name", "decay": "decay.mode", "dataset": "dataset.name", "schedule": "schedule.name"}


def select(root: Path, filters: Sequence[str]) -> list[Record]:
    """The records that match every ``key=value``: a config key (``optimizer=lion``, ``decay.weight_decay=0.5``) or
    ``state=done``.

    Raises:
        UserError: a filter that is not key=value, or a key that no run has.
    """
    described = [(record, facts(record)) for record in all_records(root)]
    known = {name for _, about in described for name in about}
    for text in filters:
        key, equals, wanted = text.partition("=")
        if not equals:
            raise UserError(f"{text}: a filter is written key=value, as in optimizer=lion")
        name = SHORT.get(key, key)
        if known and name not in known:
            raise UserError(f"{key}: no run has such a key{nearest(key, known | set(SHORT))}")
        described = [(record, about) for record, about in described if name in about and _is(about[name], wanted)]
    return [record for record, _ in described]


def _is(value: Any, wanted: str) -> bool:
    """Whether a value is what a filter says, as written (cautious) or as JSON (1e-3, null)."""
    try:
        return str(value) == wanted or value == json.loads(wanted)
    except ValueError:
        return False


def find(root: Path, prefix: str) -> Record:
    """The one record whose key begins with `prefix`.

    Raises:
        UserError: none or several do.
    """
    matches = [record for record in all_records(root) if record.key.startswith(prefix)]
    if len(matches) != 1:
        found = (
            f"{len(matches)} runs begin with it: {', '.join(m.key for m in matches)}"
            if matches
            else "no run begins with it"
        )
        raise UserError(f"{prefix}: {found} (in {root})")
    return matches[0]


def facts(record: Record) -> dict[str, Any]:
    """The configuration with dotted keys, and the state."""
    status = record.status
    return {**dict(flatten(record.config)), "state": status["state"], "step": status["step"]}


def print_runs(records: Sequence[Record], console: Console) -> None:
    """A line for each run. Laid out here, as a rich table of some thousand rows takes seconds."""
    names = ("run", "scale", "optimizer", "decay", "lr", "lambda", "seed", "state", "step", "loss", "accuracy")
    known = sorted(((record, facts(record)) for record in records), key=lambda pair: _order(pair[1]))
    rows = [names, *(_line(record, about) for record, about in known)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if name in NUMBERS else cell.ljust(width)
            for name, cell, width in zip(names, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    console.print("\n".join(lines) if records else "no runs", markup=False, highlight=False, soft_wrap=True)
    damaged = [record.key for record in records if not record.config]
    if damaged:
        line = f"config.json is damaged, training the run again writes it anew: {', '.join(damaged)}"
        console.print(line, highlight=False, soft_wrap=True)


def print_run(record: Record, console: Console) -> None:
    """Everything about one run."""
    status, summary = record.status, record.summary or {}
    console.print(f"run {record.key}  {status['state']}  step {status['step']}  {record.folder}", highlight=False)
    for name in ("message", "traceback"):
        if status.get(name):
            console.print(status[name], highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in [*flatten(summary), *flatten(record.config)]:
        table.add_row(name, str(value))
    console.print(table)
    curve = Table("step", "loss", "accuracy", box=None, pad_edge=False, title="evaluations", title_justify="left")
    for line in read_metrics(record.metrics_file, "eval"):
        curve.add_row(str(line["step"]), f"{line['loss']:.4f}", f"{line.get('accuracy', float('nan')):.4f}")
    console.print(curve)
    costs = checkpoint_costs(record)
    if costs.written:
        took = f"training waited {costs.waited:.2f} s, a thread wrote {costs.behind:.2f} s meanwhile"
        console.print(f"checkpoints: {costs.written} written, {took}, {costs.size / 1e6:.2f} MB each", highlight=False)


def print_difference(a: Record, b: Record, console: Console) -> None:
    """What differs between two runs' configurations, and their results beside each other."""
    left, right = facts(a), facts(b)
    table = Table("", a.key, b.key, box=None, pad_edge=False)
    for key in [*left, *(key for key in right if key not in left)]:
        if left.get(key) != right.get(key):
            table.add_row(key, str(left.get(key, "-")), str(right.get(key, "-")))
    one, two = a.summary or {}, b.summary or {}
    results = [dict(flatten(summary)) for summary in (one, two)]
    for key in dict.fromkeys(key for result in results for key in result):
        table.add_row(key, *(str(result.get(key, "-")) for result in results))
    console.print(table)
    if "loss" in one and "loss" in two:
        paired = one.get("pairing") == two.get("pairing")
        if "smoke" in (a.config.get("scale"), b.config.get("scale")):
            console.print("smoke scale: the results mean nothing")
        kind = "a pair" if paired else "not a pair: weights or batches differ"
        console.print(f"loss: {two['loss'] - one['loss']:+.4f} ({kind})")


def _line(record: Record, about: dict[str, Any]) -> list[str]:
    summary = record.summary or {}
    names = ("scale", "optimizer.name", "decay.mode", "optimizer.lr", "decay.weight_decay", "seed", "state", "step")
    if "theory.check" in about:
        about = {**about, "scale": "theory", "optimizer.name": about["theory.check"]}
    numbers = [f"{summary[name]:.4f}" if name in summary else "-" for name in ("loss", "accuracy")]
    return [record.key[:8], *(str(about.get(name, "-")) for name in names), *numbers]


def _order(about: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        str(about.get(name, "")) for name in ("scale", "optimizer.name", "decay.mode", "seed", "decay.weight_decay")
    )


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested data as (dotted key, value) pairs."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, one in value.items():
        yield from flatten(one, f"{prefix}.{name}" if prefix else str(name))
