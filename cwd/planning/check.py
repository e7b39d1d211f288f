"""The plan's models against what happens: small models of the paper's shapes, trained for three steps here.

The other side is torch's own: the profiler's record of every allocation and release of the CPU's allocator, and
torch.utils.flop_counter on real tensors. Reduced: the same architecture, layers, heads and ratios, at WIDTH, with fewer
ids and tokens, or images of PIXELS.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cwd.evidence.artifact_files import artifact_names, load_ladder
from cwd.evidence.document import Document, Table
from cwd.evidence.study import Study
from cwd.models.flops import flops_per_token
from cwd.models.zoo import FAMILIES
from cwd.optim import RULES, RuleOptimizer, assign_groups
from cwd.planning.forecast import Forecaster, ladder_seconds, past_runs, total
from cwd.planning.memory import Setting, memory_of, parameters_of, patterns_of
from cwd.planning.shapes import ImageShape, Shape, TextShape, checkpoint_layers, items_of, takes_targets
from cwd.planning.trace import count_flops
from cwd.planning.work import BESIDE, image_shape, shape_of
from cwd.sweeps import compose_config

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler would write lines of its own

WIDTH, IDS, TOKENS, SEQUENCES = 64, 1024, 128, 4
PIXELS, CLASSES = 64, 10
STEPS = 3
OPTIMIZERS = ("adamw", "lion", "muon")
MANY = 20  # runs from which half can forecast the other half


def reduced(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's section at about WIDTH: the heads keep their number, and what else is a width its ratio. The table has
    as many rows as there are ids.
    """
    heads = model["num_attention_heads"]
    width = heads * 2 * max(1, round(WIDTH / heads / 2))
    small = {**model, "hidden_size": width}
    for name in ("head_dim", "intermediate_size"):
        if small.get(name):
            small[name] = max(2, round(small[name] * width / model["hidden_size"] / 2) * 2)
    return {**small, "embedding_size": None} if "embedding_size" in model else small


def reduced_images(shape: ImageShape) -> ImageShape:
    """An image classifier on images of PIXELS: a ViT at WIDTH for its heads' number, a ResNet at an eighth."""
    model = {**dict(shape.model), "image_size": PIXELS}
    if model["name"].startswith("vit"):
        heads = model["num_heads"] or shape.build().blocks[0].attn.num_heads  # type: ignore[index, union-attr]
        model |= {"embed_dim": heads * max(1, round(WIDTH / heads)), "num_heads": heads}
    else:
        model |= {"channels": (8, 16, 32, 64)}
    return replace(shape, model=items_of(model), classes=CLASSES)


def measured_peak(
    shape: Shape, optimizer: Mapping[str, Any], mode: str, setting: Setting, beside: tuple[str, ...], averaged: bool
) -> int:
    """The most bytes that are allocated at one time from the model's birth to the end of the third update."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _train(shape, optimizer, mode, setting, beside, averaged)
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


def _train(
    shape: Shape, optimizer: Mapping[str, Any], mode: str, setting: Setting, beside: tuple[str, ...], averaged: bool
) -> None:
    """As the trainer does it, without what the trainer logs."""
    model: Any = shape.build().train()
    if shape.checkpointing:
        checkpoint_layers(model)
    groups = assign_groups(
        model.named_parameters(), patterns_of(optimizer, beside), lr=1e-3, weight_decay=0.1, decay=mode
    )
    defaults = {"rule": optimizer["name"], "lr": 1e-3, **RULES[optimizer["name"]].defaults}
    stepper = RuleOptimizer([group for group in groups if group["params"]], defaults, compile=False, flat=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True) if averaged else None
    for _ in range(STEPS):
        for _ in range(2 if setting.accumulates else 1):
            _loss(model, shape, setting.micro_batch).backward()
        stepper.step()
        stepper.zero_grad()
        if average is not None:
            average.update_parameters(model)


def _loss(model: Any, shape: Shape, count: int) -> torch.Tensor:
    if not isinstance(shape, TextShape):
        return shape.loss(model, count)
    rows = torch.zeros(count, shape.seq_len, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=shape.bf16):
        if shape.chunked_loss:
            return model(input_ids=rows, targets=rows, use_cache=False)[0] / rows.numel()
        logits = model(input_ids=rows, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows.flatten())


def _events(tree: list[Any]) -> Iterator[Any]:
    for event in tree:
        yield event
        yield from _events(event.children)


def memory_row(
    shape: Shape,
    optimizer: Mapping[str, Any],
    mode: str,
    setting: Setting,
    beside: tuple[str, ...] = (),
    averaged: bool = False,
) -> tuple[int, int]:
    """(predicted, measured) bytes at the peak."""
    held = parameters_of(shape, optimizer, mode, beside)
    predicted = memory_of(shape, held, setting, averaged=averaged).peak
    return predicted, measured_peak(shape, optimizer, mode, setting, beside, averaged)


def flops_row(shape: Shape) -> tuple[int, int]:
    """(the plan's, torch.utils.flop_counter's) operations of a forward and backward pass of two sequences or images: of
    a language model the formula's against those of fake tensors, else those of fake tensors against real ones.
    """
    if not isinstance(shape, TextShape):
        return count_flops(shape, 2), _real_flops(shape, 2)
    with torch.device("meta"):
        model = shape.build()
    return 2 * shape.seq_len * flops_per_token(model, shape.seq_len), count_flops(shape, 2)


def _real_flops(shape: Shape, rows: int) -> int:
    model = shape.build().train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _loss(model, shape, rows).backward()
    return counter.get_total_flops()


def check_page(scale: str, runs: Path, say: Callable[[str], None]) -> Document:
    """Predicted against measured: memory and operations of each model of the ladder, reduced, with each optimizer, and
    the time of the later half of the runs that are there, forecast from the earlier half.
    """
    torch.set_num_threads(1)
    memory, flops = [], []
    for size, config in _configs(scale, "timm").items():
        images = reduced_images(image_shape(config, CLASSES))
        say(f"operations of {size}")
        flops.append(_compared((size, "reduced"), *flops_row(images)))
        for optimizer, section in _optimizers("vision").items():
            for name, case, setting, averaged in _image_cases(images):
                say(f"memory of {size}, {optimizer}, {name}")
                rows = memory_row(case, section, "cautious", setting, (), averaged)
                memory.append(_compared((size, optimizer, name), *rows))
    for size, config in _configs(scale, *FAMILIES).items():
        model = config["model"]
        shape, full = (shape_of(section, IDS, TOKENS) for section in (reduced(model), model))
        beside = tuple(model.get(BESIDE, ()))
        say(f"operations of {size}")
        flops += [_compared((size, name), *flops_row(one)) for name, one in (("as it is", full), ("reduced", shape))]
        for optimizer, section in _optimizers("language").items():
            for name, case, setting in _cases(shape):
                say(f"memory of {size}, {optimizer}, {name}")
                memory.append(
                    _compared((size, optimizer, name), *memory_row(case, section, "cautious", setting, beside))
                )
    tables = (
        _table("Peak memory of training, bytes", ("size", "optimizer", "case"), memory),
        _table("Operations of a forward and backward pass of two sequences or images", ("size", "model"), flops),
        *_time_table(scale, runs),
    )
    worst = max(abs(float(row[-1]) - 1) for row in memory)
    remark = (
        f"Reduced: width {WIDTH}, {IDS} ids, {SEQUENCES} sequences of {TOKENS} tokens or images of {PIXELS} pixels, "
        f"{STEPS} updates. Measured: "
        "allocations and releases by torch.profiler; torch.utils.flop_counter; seconds of the runs' summaries. "
        f"Memory is off by at most {worst:.1%}."
    )
    data = {table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in tables}
    return Document("plan_check", "the plan's models against measurements", (), tables, (remark,), data)


def _configs(scale: str, *families: str) -> dict[str, dict[str, Any]]:
    """The configuration of each size of the ladder whose model is of these families, each model once."""
    found: dict[str, dict[str, Any]] = {}
    for size, rung in load_ladder(scale).sizes.items():
        if rung.needs is None and not rung.base:
            config = asdict(compose_config([*load_ladder(scale).overrides, *rung.overrides]))
            known = [one["model"] for one in found.values()]
            if config["model"]["family"] in families and config["model"] not in known:
                found[size] = config
    return found


def _optimizers(task: str) -> dict[str, dict[str, Any]]:
    words = ["scale=smoke", f"task={task}"]
    return {name: asdict(compose_config([f"optimizer={name}", *words]))["optimizer"] for name in OPTIMIZERS}


def _image_cases(shape: ImageShape) -> list[tuple[str, Shape, Setting, bool]]:
    """As :func:`_cases`, and whether the weights are averaged."""
    plain = replace(shape, mixed=False, channels_last=False)
    setting = Setting(micro_batch=SEQUENCES, on_cpu=True)
    narrow = replace(plain, bf16=True, channels_last=True)
    return [
        ("float32", plain, setting, False),
        ("bfloat16, two micro-batches", narrow, replace(setting, accumulates=True), False),
        ("mixed images, averaged weights", replace(plain, mixed=True), setting, True),
    ]


def _cases(shape: TextShape) -> list[tuple[str, Shape, Setting]]:
    plain = Setting(micro_batch=SEQUENCES, on_cpu=True)
    return [
        ("float32", shape, plain),
        ("bfloat16, two micro-batches", replace(shape, bf16=True), replace(plain, accumulates=True)),
        ("checkpointing", replace(shape, checkpointing=True), plain),
        *([("loss by chunks", replace(shape, chunked_loss=True), plain)] if _takes_targets(shape) else []),
    ]


def _takes_targets(shape: TextShape) -> bool:
    with torch.device("meta"):
        return takes_targets(shape.build())


def _time_table(scale: str, runs: Path) -> list[Table]:
    past = sorted(past_runs(runs, "cpu"), key=lambda one: one.ended)
    if len(past) < MANY:
        return []
    study = Study(scale if scale != "paper" else "laptop", runs)
    known = ladder_seconds([study.state(name) for name in artifact_names()])
    earlier, later = past[: len(past) // 2], past[len(past) // 2 :]
    predicted = total(Forecaster(earlier, known), [one.config for one in later])
    between = Forecaster(later).between[0]
    happened = sum(one.seconds + between for one in later)
    row = _compared((f"{len(later)} runs, from the {len(earlier)} before",), round(predicted.seconds), round(happened))
    return [_table("Core seconds of runs on this machine", ("runs",), [row])]


def _compared(names: tuple[str, ...], predicted: int, measured: int) -> tuple[str, ...]:
    return (*names, f"{predicted:,}", f"{measured:,}", f"{predicted / measured:.3f}")


def _table(title: str, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    return Table(title, (*names, "predicted", "measured", "ratio"), tuple(rows), len(names))
