"""Peak memory of an optimizer's step beyond parameters, gradients and state.

On a CPU, torch's profiler reports every allocation and release of torch's own allocator. Tensors of eager code and
buffers of compiled code come from there alike; what a kernel keeps on its stack, and what a BLAS library allocates for
itself inside a call, are not seen. Parameters, gradients, optimizer and three steps are all made while it watches, so
what an optimizer keeps between steps besides its state counts as well. Bytes are those that were asked for; where the C
library gives freed memory back at once, peak resident memory says the same. On a GPU: torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from cwd.benchmarks.ours import CLASSES, WAYS, ways, wrapped_adamw
from cwd.benchmarks.report import Table, publish, read_names, read_options
from cwd.benchmarks.workload import LR, Make, Shapes, Workload, device, matrices
from cwd.optim import MODES, RULES

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler would write lines of its own

OPTIONS: dict[str, int | str] = {"threads": 2, "rules": "", "modes": "", "markdown": ""}
TENSORS: list[tuple[int, ...]] = [(1024, 1024)] * 6 + [(1024,)]
LARGEST = 4 * 2**20  # bytes
STEPS = 3  # the last one is measured
MEASURED = "the measured step"
NOTE = (
    "In units of the largest tensor's bytes (4 MiB). Parameters: 6 matrices of 1024 x 1024 and a vector of 1024 (Muon: "
    "the matrices), float32. Target: at most 1.00 for every rule and mode but random; a cell over its target is marked "
    "with a star. The wrapper keeps a copy of the parameters that decay, here 6.00: its target is 7.00."
)


def main(arguments: Sequence[str]) -> None:
    """See scripts/benchmark.py; `arguments` are key=value."""
    options = read_options(arguments, OPTIONS)
    torch.set_num_threads(options["threads"])
    rules, modes = read_names(options, "rules", CLASSES), read_names(options, "modes", MODES)
    shown = [way for way in WAYS if any(way in ways(rule) for rule in rules)]
    table = Table(f"Peak memory of a step, {device().type}", ["rule, mode", *shown], [NOTE])
    for rule in rules:
        shapes = matrices(TENSORS) if RULES[rule].matrices_only else TENSORS
        for mode in modes:
            cells = {
                way: _cell(partial(CLASSES[rule], lr=LR, decay=mode, **kwargs), shapes, mode, 1.0)
                for way, kwargs in ways(rule).items()
            }
            table.add(f"{rule}, {mode}", *(cells.get(way, "-") for way in shown))
    for mode in modes:
        cell = _cell(partial(wrapped_adamw, mode=mode), TENSORS, mode, 7.0)
        table.add(f"wrapper of torch AdamW fused, {mode}", *(cell if way == "eager" else "-" for way in shown))
    publish("memory", "Memory of a step", arguments, [table], options["markdown"])


def _cell(make: Make, shapes: Shapes, mode: str, target: float) -> str:
    units = f"{peak_of_step(make, shapes) / LARGEST:.2f}"
    return units + "*" * (float(units) > target and mode != "random")


def peak_of_step(make: Make, shapes: Shapes) -> int:
    """The most bytes that are allocated at any time of a step, less those of parameters, gradients and state.

    Args:
        make: gives the optimizer for a list of parameters.
        shapes: of the parameters, float32.
    """
    warm = Workload(make, shapes)  # compiles
    for _ in range(2):
        warm.prepare()
        warm.step()
    del warm
    gc.collect()
    measure = _peak_on_gpu if device().type == "cuda" else _peak_on_cpu
    return measure(make, shapes)


def _peak_on_cpu(make: Make, shapes: Shapes) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        load = _before_the_last_step(make, shapes)
        with record_function(MEASURED):
            load.step()
    return _highest(profiler) - load.held_bytes()


def peak_of(action: Callable[[], None]) -> int:
    """The most bytes that are allocated at any time of `action` beyond those before it."""
    if device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, record_function(MEASURED):
        action()
    return _highest(profiler)


def _highest(profiler: Any) -> int:
    """The most bytes during what was marked as measured, of those that were allocated since the profiler began."""
    events = list(_events(profiler.profiler.kineto_results.experimental_event_tree()))
    step = next(event for event in events if event.name == MEASURED)
    changes = [(e.start_time_ns, e.extra_fields.alloc_size) for e in events if e.tag.name == "Allocation"]
    level = highest = sum(size for when, size in changes if when < step.start_time_ns)
    for when, size in sorted(changes, key=lambda change: change[0]):
        if step.start_time_ns <= when <= step.end_time_ns:
            level += size
            highest = max(highest, level)
    return highest


def _peak_on_gpu(make: Make, shapes: Shapes) -> int:
    before = torch.cuda.memory_allocated()
    load = _before_the_last_step(make, shapes)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    load.step()
    return torch.cuda.max_memory_allocated() - before - load.held_bytes()


def _before_the_last_step(make: Make, shapes: Shapes) -> Workload:
    load = Workload(make, shapes)
    for _ in range(STEPS - 1):
        load.step()
        load.prepare()
    return load


def _events(tree: Sequence[Any]) -> Iterator[Any]:
    for event in tree:
        yield event
        yield from _events(event.children)
