"""What checkpoints cost, in time and disk: their part of whole runs of a ladder at the default interval, and one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cwd.benchmarks.report import Table, publish, read_names, read_options
from cwd.evidence.artifact_files import load_ladder
from cwd.runs import Record
from cwd.runs.costs import checkpoint_costs
from cwd.schema import Machine
from cwd.sweeps import compose_config
from cwd.training.checkpoint import KEEP
from cwd.training.run import run

OPTIONS: dict[str, int | str] = {
    "scale": "laptop",
    "sizes": "111m,338m,986m,2b",
    "saves": 20,
    "megabytes": 400,
    "repeats": 3,
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
LARGE = ("checkpoint", "run, s", "longer by, s", "training waits, s", "a thread writes, s")
LARGE_NOTE = (
    "The same run of a larger model with one checkpoint, medians: without it, with training waiting for it, and with a "
    "thread that writes a copy. `longer by` is against the run without; it holds what the thread takes from training, "
    "and on a machine that does other work mostly that work."
)
LAYERS, STEPS = 4, 24
WRITERS = {"none": "false", "training waits": "false", "in the background": "true"}


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
        large = _measure_large(Path(folder), options)
    publish("checkpoint", "Checkpoints", arguments, [table, large], options["markdown"])


def _measure(table: Table, size: str, words: Sequence[str], folder: Path, options: dict[str, Any]) -> None:
    machine = [f"machine.data={options['data']}", "machine.progress=summary"]
    whole = run(compose_config([*words, *machine, f"machine.runs={folder / 'whole'}"])).record
    short = [f"training.steps={options['saves'] + 1}", "machine.checkpoint_seconds=0"]
    often = run(compose_config([*words, *short, *machine, f"machine.runs={folder / 'often'}"])).record
    costs, many = checkpoint_costs(whole), checkpoint_costs(often)
    assert whole.summary is not None
    one = many.waited / many.written
    every = Machine().checkpoint_seconds
    table.add(
        size,
        f"{whole.summary['seconds']:.1f}",
        str(costs.written),
        f"{costs.waited / whole.summary['seconds']:.2%}",
        f"{1e3 * one:.1f}",
        f"{many.size / 1e3:.0f}",
        f"{one / (every + one):.3%}",
    )


def _measure_large(folder: Path, options: dict[str, Any]) -> Table:
    """Weights and AdamW's two moments of `megabytes`, by turns."""
    width = 64 * round(math.sqrt(options["megabytes"] * 1e6 / 12 / (20 * LAYERS)) / 64) or 64
    model = [f"model.hidden_size={width}", f"model.num_hidden_layers={LAYERS}", "model.num_attention_heads=8"]
    machine = [f"machine.data={options['data']}", "machine.progress=summary", "machine.threads=null"]
    words = ["scale=smoke", "tracker=none", "telemetry.every=0", f"training.steps={STEPS}", *model, *machine]
    found: dict[str, list[Record]] = {writer: [] for writer in WRITERS}
    for repeat in range(options["repeats"]):
        for writer, background in WRITERS.items():
            after = 1e9 if writer == "none" else 2.0  # seconds; the next would be far later, at 2% of the time
            how = [f"machine.checkpoint_seconds={after}", f"machine.checkpoint_background={background}"]
            place = f"machine.runs={folder / f'{writer} {repeat}'}".replace(" ", "_")
            found[writer].append(run(compose_config([*words, *how, place])).record)
    size = max(checkpoint_costs(record).size for records in found.values() for record in records)
    table = Table(f"One checkpoint of {size / 1e6:.0f} MB", LARGE, [LARGE_NOTE])
    alone = median(_seconds(record) for record in found["none"])
    for writer, records in found.items():
        costs, seconds = [checkpoint_costs(record) for record in records], median(map(_seconds, records))
        waited, behind = median(cost.waited for cost in costs), median(cost.behind for cost in costs)
        table.add(writer, f"{seconds:.1f}", f"{seconds - alone:.2f}", f"{waited:.2f}", f"{behind:.2f}")
    return table


def _seconds(record: Record) -> float:
    assert record.summary is not None
    return record.summary["seconds"]
