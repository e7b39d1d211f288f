"""The memory model and the FLOPs against what happens: small models of the paper's shapes, trained for three steps here.

The other side is torch's own: the profiler's record of every allocation and release of the CPU's allocator, and
torch.utils.flop_counter. Reduced: the same architecture, layers, heads and ratios, at WIDTH, with fewer ids and tokens.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from cwd.evidence.document import Document, Table
from cwd.models.flops import flops_per_token
from cwd.optim import RULES, RuleOptimizer, assign_groups
from cwd.planning.memory import Setting, memory_of, parameters_of, patterns_of
from cwd.planning.trace import Shape, checkpoint_layers, count_flops

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler would write lines of its own

WIDTH, IDS, TOKENS, SEQUENCES = 64, 1024, 128, 4
STEPS = 3
LIMIT = 0.10  # relative error that is allowed


def reduced(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's section at WIDTH: the heads keep their number, and what else is a width its ratio."""
    small = dict(model)
    ratio = WIDTH / model["hidden_size"]
    for name in ("hidden_size", "head_dim", "intermediate_size"):
        if small.get(name):
            small[name] = max(2, round(small[name] * ratio / 2) * 2)
    return small


def measured_peak(
    shape: Shape, optimizer: Mapping[str, Any], mode: str, setting: Setting, compiled: bool = False
) -> int:
    """The most bytes that are allocated at one time from the model's birth to the end of the third update."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _train(shape, optimizer, mode, setting, compiled)
    changes = [
        (event.start_time_ns, event.extra_fields.alloc_size)
        for event in _events(profiler.profiler.kineto_results.experimental_event_tree())
        if event.tag.name == "Allocation"
    ]
    level = highest = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        level += size
        highest = max(highest, level)
    return highest


def _train(shape: Shape, optimizer: Mapping[str, Any], mode: str, setting: Setting, compiled: bool) -> None:
    """As the trainer does it, without what the trainer logs."""
    model = shape.build().train()
    if shape.checkpointing:
        checkpoint_layers(model)
    groups = assign_groups(model.named_parameters(), patterns_of(optimizer["groups"]), lr=1e-3, weight_decay=0.1, decay=mode)
    defaults = {"rule": optimizer["name"], "lr": 1e-3, **RULES[optimizer["name"]].defaults}
    stepper = RuleOptimizer([group for group in groups if group["params"]], defaults, compile=compiled, flat=True)
    rows = torch.zeros(setting.micro_batch, shape.seq_len, dtype=torch.int64)
    for _ in range(STEPS):
        for _ in range(2 if setting.accumulates else 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=shape.bf16):
                logits = model(input_ids=rows).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), rows.flatten())
            del logits
            loss.backward()
        stepper.step()
        stepper.zero_grad()


def _events(tree: list[Any]) -> Iterator[Any]:
    for event in tree:
        yield event
        yield from _events(event.children)


def memory_row(shape: Shape, optimizer: Mapping[str, Any], mode: str, setting: Setting) -> tuple[int, int]:
    """(predicted, measured) bytes at the peak."""
    held = parameters_of(shape, optimizer["groups"], mode)
    return memory_of(shape, held, setting).peak, measured_peak(shape, optimizer, mode, setting)


def flops_row(shape: Shape) -> tuple[int, int]:
    """(the formula's, torch.utils.flop_counter's) operations of a forward and backward pass of two sequences."""
    with torch.device("meta"):
        model = shape.build()
    return 2 * shape.seq_len * flops_per_token(model, shape.seq_len), count_flops(shape, 2)
