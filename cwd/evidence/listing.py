"""Runs in the terminal: list and filter them, show one, compare two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cwd.errors import UserError, nearest
from cwd.runs import Record, all_records, read_metrics

SHORT = {"optimizer": "optimizer.name", "decay": "decay.mode", "dataset": "dataset.name", "schedule": "schedule.name"}


def select(root: Path, filters: Sequence[str]) -> list[Record]:
    """The records that match every ``key=value``: a config key (``optimizer=lion``, ``decay.weight_decay=0.5``) or ``state=done``.

    Raises:
        UserError: a filter that is not key=value, or a key that no run has.
    """
    records = all_records(root)
    for text in filters:
        key, equals, wanted = text.partition("=")
        if not equals:
            raise UserError(f"{text}: a filter is written key=value, as in optimizer=lion")
        known = {name for record in records for name in facts(record)}
        if records and SHORT.get(key, key) not in known:
            raise UserError(f"{key}: no run has such a key{nearest(key, known | set(SHORT))}")
        records = [record for record in records if str(facts(record).get(SHORT.get(key, key))) == wanted]
    return records


def find(root: Path, prefix: str) -> Record:
    """The one record whose key begins with `prefix`.

    Raises:
        UserError: none or several do.
    """
    matches = [record for record in all_records(root) if record.key.startswith(prefix)]
    if len(matches) != 1:
        found = f"{len(matches)} runs begin with it: {', '.join(m.key for m in matches)}" if matches else "no run begins with it"
        raise UserError(f"{prefix}: {found} (in {root})")
    return matches[0]


def facts(record: Record) -> dict[str, Any]:
    """The configuration with dotted keys, and the state."""
    return {**dict(_flatten(record.config)), "state": record.status["state"]}


def print_runs(records: Sequence[Record], console: Console) -> None:
    """A line for each run."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "scale", "optimizer", "decay", "lr", "lambda", "seed", "state", "step", "loss", "accuracy"):
        table.add_column(name, justify="right" if name in ("lr", "lambda", "seed", "step", "loss", "accuracy") else "left")
    for record in sorted(records, key=_order):
        table.add_row(*_line(record))
    console.print(table if records else "no runs")


def print_run(record: Record, console: Console) -> None:
    """Everything about one run."""
    status, summary = record.status, record.summary or {}
    console.print(f"run {record.key}  {status['state']}  step {status['step']}  {record.folder}", highlight=False)
    if status.get("message"):
        console.print(status["message"], highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in [*_flatten(summary), *_flatten(record.config)]:
        table.add_row(name, str(value))
    console.print(table)
    curve = Table("step", "loss", "accuracy", box=None, pad_edge=False, title="evaluations", title_justify="left")
    for line in read_metrics(record.metrics_file, "eval"):
        curve.add_row(str(line["step"]), f"{line['loss']:.4f}", f"{line.get('accuracy', float('nan')):.4f}")
    console.print(curve)


def print_difference(a: Record, b: Record, console: Console) -> None:
    """What differs between two runs' configurations, and their results beside each other."""
    left, right = facts(a), facts(b)
    table = Table("", a.key, b.key, box=None, pad_edge=False)
    for key in [*left, *(key for key in right if key not in left)]:
        if left.get(key) != right.get(key):
            table.add_row(key, str(left.get(key, "-")), str(right.get(key, "-")))
    one, two = a.summary or {}, b.summary or {}
    for key in ("loss", "accuracy", "seconds", "pairing"):
        table.add_row(key, str(one.get(key, "-")), str(two.get(key, "-")))
    console.print(table)
    if one and two:
        paired = one.get("pairing") == two.get("pairing")
        console.print(f"loss: {two['loss'] - one['loss']:+.4f} ({'a pair' if paired else 'not a pair: weights or batches differ'})")


def _line(record: Record) -> list[str]:
    config, status, summary = facts(record), record.status, record.summary or {}
    names = ("scale", "optimizer.name", "decay.mode", "optimizer.lr", "decay.weight_decay", "seed")
    numbers = [f"{summary[name]:.4f}" if name in summary else "-" for name in ("loss", "accuracy")]
    return [record.key[:8], *(str(config.get(name, "-")) for name in names), status["state"], str(status["step"]), *numbers]


def _order(record: Record) -> tuple[str, ...]:
    config = facts(record)
    return tuple(str(config.get(name, "")) for name in ("scale", "optimizer.name", "decay.mode", "seed", "decay.weight_decay"))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, one in value.items():
        yield from _flatten(one, f"{prefix}.{name}" if prefix else str(name))
