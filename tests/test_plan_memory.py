"""The memory model and the FLOPs against torch's own accounts, and against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cwd.planning.check import flops_row, memory_row, reduced
from cwd.planning.memory import Setting, memory_of, parameters_of, step_bytes
from cwd.planning.shapes import Shape
from cwd.planning.trace import trace_pass
from cwd.planning.work import shape_of

LARGE: dict[str, Any] = {
    "family": "simply", "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 128,
}  # fmt: skip
TINY = {**LARGE, "num_hidden_layers": 2}
BESIDE = ["embed.*", "*norm.scale", "*.bias", "*.per_dim_scale"]
TOTAL = 338_440_704  # the paper's Table 8, 338M


def optimizer(name: str) -> dict[str, Any]:
    about = {"decay": True, "lr_multiple": 1.0}
    groups = [{"match": ["*"], "rule": name, **about}]
    if name == "muon":
        groups.insert(0, {"match": BESIDE, "rule": "adamw", **about})
    return {"name": name, "groups": groups}


@pytest.fixture(scope="module")
def small() -> Shape:
    return shape_of(reduced(TINY), 512, 64)


@pytest.mark.parametrize(
    ("name", "changes", "setting"),
    [
        ("adamw", {}, Setting(micro_batch=4, on_cpu=True)),
        ("muon", {"bf16": True}, Setting(micro_batch=3, accumulates=True, on_cpu=True)),
        ("muon", {"checkpointing": True}, Setting(micro_batch=1, on_cpu=True)),  # the step is the peak
        ("lion", {"checkpointing": True}, Setting(micro_batch=6, on_cpu=True)),
    ],
)
def test_the_peak_is_what_the_allocator_records(
    small: Shape, name: str, changes: dict[str, Any], setting: Setting
) -> None:
    predicted, measured = memory_row(replace(small, **changes), optimizer(name), "cautious", setting)
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("mode", ["scaled", "random"])  # they look at whole tensors, or draw: nothing lies flat
def test_modes_that_cannot_lie_flat_are_predicted_too(small: Shape, mode: str) -> None:
    predicted, measured = memory_row(small, optimizer("adamw"), mode, Setting(micro_batch=2, on_cpu=True))
    assert predicted == pytest.approx(measured, rel=0.05)


def test_flops_are_those_that_torch_counts(small: Shape) -> None:
    formula, counted = flops_row(small)
    assert formula == counted
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 512) + 512 * 64  # attention, feed-forward, output
    assert formula == 2 * 64 * (6 * matrices + 12 * 2 * 64 * 64)  # two sequences of 64 tokens, attention 64 wide


def test_weights_and_state_are_the_papers_counts_times_the_rules_buffers() -> None:
    shape = shape_of(LARGE, 100_864, 2048)
    matrices = 8 * (4 * 1024 * 1024 + 3 * 1024 * 8192)
    state = {"adamw": 8 * TOTAL, "lion": 4 * TOTAL, "sgd": 4 * TOTAL, "muon": 4 * matrices + 8 * (TOTAL - matrices)}
    for name, expected in state.items():
        held = parameters_of(shape, optimizer(name), "cautious")
        assert sum(one.elements for one in held) == TOTAL
        found = memory_of(replace(shape, seq_len=8), held, Setting())
        assert (found.weights, found.gradients, found.state) == (4 * TOTAL, 4 * TOTAL, expected)


def test_what_a_model_or_a_threshold_keeps_from_muon_is_adamws() -> None:
    shape = shape_of(TINY, 512, 64)
    plain = {"name": "muon", "groups": [{"match": ["*"], "rule": "muon", "decay": True, "lr_multiple": 1.0}]}
    held = parameters_of(shape, {**plain, "dim_threshold": 5000}, "cautious", BESIDE)
    rules = {one.name: one.rule for one in held}
    assert rules["embed.weight"] == "adamw"
    assert rules["layers.0.attn.q_proj.weight"] == "muon"
    assert rules["layers.0.ffn.up.weight"] == "adamw"  # 8,192 wide


def test_sharding_divides_what_rests_and_not_the_activations(small: Shape) -> None:
    held = parameters_of(small, optimizer("adamw"), "cautious")
    alone, many = Setting(micro_batch=2), Setting("full", devices=16, per_node=4, micro_batch=2)
    one, full = memory_of(small, held, alone), memory_of(small, held, many)
    hybrid = memory_of(small, held, replace(many, sharding="hybrid"))
    for name in ("weights", "gradients", "state"):
        assert getattr(full, name) == pytest.approx(getattr(one, name) / 16, abs=1)
        assert getattr(hybrid, name) == pytest.approx(getattr(one, name) / 4, abs=1)
    assert full.activations == hybrid.activations > 0.9 * one.activations
    elements = {layer: sum(h.elements for h in held if h.layer is layer) for layer in (True, False)}
    assert full.sharing == (elements[False] + elements[True]) * 8  # both layers, and the rest: weights and gradients
    copied = memory_of(small, held, Setting(devices=16, per_node=4, micro_batch=2))
    assert copied.peak - one.peak == copied.sharing == one.weights  # DDP's buckets


def test_activations_grow_with_the_batch_and_shrink_with_checkpoints_and_chunks() -> None:
    shape = shape_of(reduced(TINY), 2**21, 64)  # so many ids that the logits are most of it
    kept, again, chunked = (
        trace_pass(one) for one in (shape, replace(shape, checkpointing=True), replace(shape, chunked_loss=True))
    )
    assert kept.activations(8) == pytest.approx(2 * kept.activations(4), rel=1e-9)
    assert again.activations(4) < kept.activations(4)
    assert kept.peak(8)[1] > 8 * 64 * 2**21 * 4  # at least the logits themselves
    assert chunked.peak(8)[1] < 0.1 * kept.peak(8)[1]


def test_fused_attention_holds_no_scores() -> None:
    shape = shape_of(reduced(TINY), 256, 1024)
    scores = 8 * 1024 * 1024 * 4  # of one sequence and layer, float32
    assert trace_pass(shape).activations(1) > 2 * scores
    assert trace_pass(replace(shape, fused=True)).activations(1) < 2 * scores


def test_a_compiled_step_takes_less(small: Shape) -> None:
    held = parameters_of(small, optimizer("adamw"), "scaled")
    assert step_bytes(held, Setting(), compiled=True) == 0 < step_bytes(held, Setting(), compiled=False)
