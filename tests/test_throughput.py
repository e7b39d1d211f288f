"""What a run costs: operations, peaks, the speed lines, the trace."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cwd.models import build
from cwd.models.flops import flops_per_token
from cwd.runs import read_metrics
from cwd.training.peaks import PEAKS, peak_by_name, peak_of
from tests.training_helpers import outcome, train

SHAPES = [
    {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8},
    {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 5, "head_dim": 4, "ffn_factor": 3},
    {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8, "ffn_bias": False},
]


# --- operations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_formula_counts_every_multiplication_that_torch_counts(shape, tied):
    length, rows = 12, 3
    model = build("simply", vocab_size=40, seq_len=length, **shape)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(rows, length, dtype=torch.long)).logits.sum().backward()
    assert flops_per_token(model, length) * rows * length == counter.get_total_flops()


def test_the_formula_is_6n_and_12lta_and_needs_no_weights():
    with torch.device("meta"):
        model = build("simply", vocab_size=1000, seq_len=64, **SHAPES[0])
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 128) + 1000 * 16
    assert flops_per_token(model, 64) == 6 * matrices + 12 * 2 * 64 * 16


# --- peaks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "fp32", 67.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA A10", "bf16", None),
        ("NVIDIA L40S", "fp32", 91.6),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp64", None),
        ("NVIDIA B200", "fp32", None),
        ("Some Other Device", "bf16", None),
    ],
)
def test_peaks_are_found_by_the_name_that_cuda_gives(name, precision, expected):
    assert peak_by_name(name, precision) == (expected and pytest.approx(1e12 * expected))


def test_a_cpu_has_no_peak_and_every_peak_has_a_source():
    assert peak_of(torch.device("cpu"), "bf16") is None
    assert all(peak.source for peak in PEAKS.values())
    assert all(peak.fp32 is None or peak.fp32 < peak.bf16 for peak in PEAKS.values())


# --- what a run writes --------------------------------------------------------------------------------------------


def test_a_run_says_how_fast_it_was_and_where_the_time_went(tmp_path):
    record = train(tmp_path, "machine.log_every=1").record
    lines = read_metrics(record.metrics_file, "speed")
    assert [line["step"] for line in lines] == [10, 20]  # at each evaluation
    trained = read_metrics(record.metrics_file, "train")
    for line, seconds in zip(
        lines, (trained[9]["seconds"], trained[19]["seconds"] - trained[9]["seconds"]), strict=True
    ):
        assert line["tokens_per_second"] == pytest.approx(4 * 32 / line["step_seconds"])
        assert 0 < 10 * line["step_seconds"] < 1.05 * seconds  # `seconds` has the evaluation too
        assert 0 < line["data_share"] < 1
        assert 0 < line["optimizer_share"] < 1 - line["data_share"]
        assert line["mfu"] is None
        assert line["processes"] == 1
        assert line["peak_memory"] > 50e6  # torch alone is more
    model = build("simply", vocab_size=256, seq_len=32, **shape_of(record.config))
    assert lines[1]["tflops"] == pytest.approx(lines[1]["tokens_per_second"] * flops_per_token(model, 32) / 1e12)


def shape_of(config: dict) -> dict:
    return {name: value for name, value in config["model"].items() if name != "family"}


def test_a_trace_is_written_where_it_is_said_and_changes_nothing(tmp_path, capsys):
    plain = train(tmp_path / "plain", "training.steps=8")
    traced = train(tmp_path / "traced", "training.steps=8", "machine.profile=2", "machine.progress=lines")
    path = traced.record.folder / "trace.json"
    assert f"trace  {path}" in capsys.readouterr().out
    names = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    assert len([name for name in names if name.startswith("ProfilerStep#")]) == 2
    assert any("aten::mm" in name for name in names)
    assert traced.record.key == plain.record.key
    assert outcome(traced.record) == outcome(plain.record)


def test_a_trace_of_more_updates_than_there_are_is_of_those(tmp_path):
    record = train(tmp_path, "training.steps=6", "machine.profile=100").record
    assert (record.folder / "trace.json").exists()
