"""Time of our optimizers' steps beside torch's own, of the first step, and how often a schedule recompiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import Parameter

from cwd.benchmarks.first_step import first_step_seconds, new_graphs
from cwd.benchmarks.ours import CLASSES, ways, wrapped_adamw
from cwd.benchmarks.report import Table, publish, read_options
from cwd.benchmarks.timing import Turn, compare
from cwd.benchmarks.workload import LARGE, LR, MANY, SHAPES, Make, Workload, device, matrices
from cwd.optim import Muon

OPTIONS: dict[str, int | str] = {"threads": 2, "repeats": 15, "markdown": ""}
ELEMENTWISE = ("adamw", "lion", "sgd")
# The most that a step may take, as a part of the baseline's.
TARGETS = {
    "AdamW compiled": {LARGE: 1.05, MANY: 1.1},
    "AdamW flat": {MANY: 0.6},
    "Lion compiled": {LARGE: 0.8, MANY: 0.8},
    "Lion flat": {MANY: 0.4},
    "SGD compiled": {LARGE: 0.75, MANY: 0.75},
    "Muon bfloat16": {LARGE: 1.0, MANY: 1.0},
}
WARM_SECONDS = 5.0  # the most that a first step may take with a warm compile cache
NOTE = (
    "Decay is cautious on our side and plain, weight_decay=0.1, on the other. Each of our steps comes right after one "
    "of the baseline's; the ratio is the median of neighbouring steps, with its first and last decile. Muon iterates "
    "in bfloat16 on both sides, and is timed a fifth as often. flat keeps parameters, gradients and state in flat "
    "buffers."
)
FIRST_NOTE = (
    "The first step() in a fresh process, import and construction not counted, with an empty and then with the filled "
    "compile cache. New graphs: compilations during 1,000 steps of a cosine schedule, after two steps."
)


@dataclass(frozen=True)
class Row:
    """Ours and what it is compared with."""

    name: str
    ours: Make
    baseline: str
    theirs: Make
    targets: Mapping[str, float] = field(default_factory=dict)
    matrices_only: bool = False


def main(arguments: Sequence[str]) -> None:
    """See scripts/benchmark.py; `arguments` are key=value."""
    options = read_options(arguments, OPTIONS)
    torch.set_num_threads(options["threads"])
    tables = [_steps(title, options["repeats"]) for title in SHAPES]
    tables.append(_first_steps(options["threads"]))
    publish("optimizers", "Optimizer steps", arguments, tables, options["markdown"])


def rows() -> list[Row]:
    """Every comparison that can be made here."""
    found = []
    for rule in ELEMENTWISE:
        for way, kwargs in ways(rule).items():
            name, ours = CLASSES[rule].__name__, partial(CLASSES[rule], lr=LR, weight_decay=0.1, **kwargs)
            targets = TARGETS.get(f"{name} {way}", {})
            found.append(Row(f"{name} {way}", ours, "torch AdamW fused", torch_adamw, targets))
    found.append(Row("wrapper of torch AdamW fused", wrapped_adamw, "torch AdamW fused", torch_adamw))
    for baseline, theirs in muons().items():
        ours, targets = partial(Muon, lr=LR, weight_decay=0.1, ns_dtype=torch.bfloat16), TARGETS["Muon bfloat16"]
        found.append(Row("Muon bfloat16", ours, baseline, theirs, targets, matrices_only=True))
    return found


def torch_adamw(params: list[Parameter]) -> torch.optim.Optimizer:
    """The baseline: fused, with plain decay."""
    return torch.optim.AdamW(params, lr=LR, weight_decay=0.1, fused=True)


def muons() -> dict[str, Make]:
    """Other Muons, plain decay: torch's, and pytorch_optimizer's where it is installed."""
    found: dict[str, Make] = {"torch Muon": partial(torch.optim.Muon, lr=LR, weight_decay=0.1)}
    if find_spec("pytorch_optimizer"):

        def pytorch_optimizer_muon(params: list[Parameter]) -> Any:
            groups = [{"params": params, "use_muon": True}]
            return import_module("pytorch_optimizer").Muon(groups, lr=LR, weight_decay=0.1)

        found["pytorch_optimizer Muon"] = pytorch_optimizer_muon
    return found


def _steps(title: str, repeats: int) -> Table:
    columns = ["optimizer", "ms", "of", "baseline's ms", "ratio (deciles)", "target"]
    table = Table(f"{title}, float32, {device().type}", columns, [NOTE])
    for row in rows():
        shapes = matrices(SHAPES[title]) if row.matrices_only else SHAPES[title]
        turns = [Turn(load.step, load.prepare) for load in (Workload(row.theirs, shapes), Workload(row.ours, shapes))]
        ratio = compare(turns[1], turns[0], max(3, repeats // 5) if row.matrices_only else repeats)
        target = f"<= {row.targets[title]:g}" if title in row.targets else "-"
        table.add(row.name, f"{ratio.ours:.2f}", row.baseline, f"{ratio.theirs:.2f}", str(ratio), target)
    return table


def _first_steps(threads: int) -> Table:
    target = f"{WARM_SECONDS:g} s at most, 0 graphs"
    columns = ["optimizer", "cold cache, s", "warm cache, s", "new graphs", "target"]
    table = Table(f"First step, {MANY}, and recompilations", columns, [FIRST_NOTE])
    for rule in ELEMENTWISE:
        for way, kwargs in ways(rule).items():
            if kwargs["compile"]:
                cold, warm = first_step_seconds(rule, kwargs, threads)
                graphs = new_graphs(partial(CLASSES[rule], lr=LR, **kwargs), SHAPES[MANY])
                table.add(f"{CLASSES[rule].__name__} {way}", f"{cold:.1f}", f"{warm:.1f}", str(graphs), target)
    return table
