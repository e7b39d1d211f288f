"""What checkpoints cost, in time and disk: their part of whole runs of a ladder at the default interval, and one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwd.benchmarks.report import Table, publish, read_names, read_options
from cwd.evidence.artifact_files import load_ladder
from cwd.runs import Record, read_metrics
from cwd.schema import Machine
from cwd.sweeps import compose_config
from cwd.training.checkpoint import KEEP
from cwd.training.run import run

OPTIONS: dict[str, int | str] = {
    "scale": "laptop",
    "sizes": "111m,338m,986m,2b",
    "saves": 20,
    "data": "data",
    "markdown": "",
}
COLUMNS = (
    "size",
    "run, s",
    "written",
    "of the run",
    "one, ms",
    "one, kB",
    f"one in {Machine().checkpoint_seconds:g} s",
)
NOTE = (
    "Whole runs, AdamW with cautious decay, on this disk. `written`: checkpoints of the run at the default interval; "
    "`of the run`: the time that they took of it. `one`: the mean of some more, written after every update of another "
    f"run. A run that is not finished keeps {KEEP} on the disk, a finished one none. Target: below 2% of the run."
)


def main(arguments: Sequence[str]) -> None:
    """See scripts/benchmark.py; `arguments` are key=value."""
    options = read_options(arguments, OPTIONS)
    ladder = load_ladder(options["scale"])
    sizes = read_names(options, "sizes", ladder.sizes)
    table = Table(f"Checkpoints at {options['scale']} scale", COLUMNS, [NOTE])
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for size in sizes:
            words = [*ladder.overrides, *ladder.sizes[size].overrides, "tracker=none"]
            _measure(table, size, words, Path(folder), options)
    publish("checkpoint", "Checkpoints", arguments, [table], options["markdown"])


def _measure(table: Table, size: str, words: Sequence[str], folder: Path, options: dict[str, Any]) -> None:
    machine = [f"machine.data={options['data']}", "machine.progress=summary"]
    whole = run(compose_config([*words, *machine, f"machine.runs={folder / 'whole'}"])).record
    short = [f"training.steps={options['saves'] + 1}", "machine.checkpoint_seconds=0"]
    often = run(compose_config([*words, *short, *machine, f"machine.runs={folder / 'often'}"])).record
    written, seconds, _ = costs(whole)
    count, each, size_each = costs(often)
    assert whole.summary is not None
    part, one = seconds / whole.summary["seconds"], each / count
    every = Machine().checkpoint_seconds
    table.add(
        size,
        f"{whole.summary['seconds']:.1f}",
        str(written),
        f"{part:.2%}",
        f"{1e3 * one:.1f}",
        f"{size_each / 1e3:.0f}",
        f"{one / (every + one):.3%}",
    )


def costs(record: Record) -> tuple[int, float, int]:
    """Of a finished run: checkpoints written, the seconds that they took together, the bytes of the last."""
    lines = [line for line in read_metrics(record.metrics_file, "speed") if "checkpoints" in line]
    size = max((line["checkpoint_bytes"] for line in lines), default=0)
    return sum(line["checkpoints"] for line in lines), sum(line["checkpoint_seconds"] for line in lines), size
