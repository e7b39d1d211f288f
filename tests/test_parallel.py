"""Several processes train what one trains: in float64, to 1e-8, whatever the optimizer, the layout and the resumes.

Two processes train all runs that the tests of this file look at, so that torch is loaded twice and not fifty times.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cwd.runs import Record, all_records, read_metrics
from cwd.training import trainer
from tests.parallel_helpers import Case, case, together
from tests.training_helpers import train

pytestmark = pytest.mark.timeout(900)
STEPS, CLOSE = 50, 1e-8
LONG = 1500  # seconds
RULES, MODES, LAYOUTS = ("adamw", "lion", "muon", "sgd"), ("cautious", "decoupled"), ("none", "full", "hybrid")
MATRIX = [(rule, mode, layout) for rule in RULES for mode in MODES for layout in LAYOUTS]
QUICK = [
    ("adamw", "cautious", "full"),
    ("lion", "decoupled", "none"),
    ("muon", "cautious", "full"),
    ("sgd", "cautious", "none"),
]
# Processes and layout of each start: the state goes from parts to whole to whole, and from whole to whole to parts.
RESUMED = {"muon": ("full", "none"), "adamw": ("none", "full")}


def words(rule: str, mode: str) -> list[str]:
    """Five evaluation sequences make an odd number of pieces: one process has one more than the other."""
    steps = [f"training.steps={STEPS}", "evaluation.every=25", "evaluation.sequences=5"]
    return [f"optimizer={rule}", f"decay={mode}", "training.precision=fp64", "machine.log_every=1", *steps]


def cell(rule: str, mode: str, layout: str) -> Case:
    machine = [f"machine.sharding={layout}", "machine.shard_size=1"]
    if rule == "adamw":
        machine.append("machine.micro_batch_size=1")  # of a share of two
    return case(f"{rule} {mode} {layout}", *words(rule, mode), *machine)


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM comes in the update with this number."""
    real = trainer.Trainer._update

    def update(self: trainer.Trainer) -> None:
        real(self)
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.Trainer, "_update", update)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All runs of the quick tests: 2 processes, then 1, then 2."""
    folder = tmp_path_factory.mktemp("parallel")
    cases = [cell(*one) for one in QUICK]
    cases.append(cases[0])  # is found, and both processes go on
    for rule, (layout, _) in RESUMED.items():
        behind = ["machine.checkpoint_seconds=0", "machine.checkpoint_background=true"]
        cases.append(case(rule, *words(rule, "cautious"), f"machine.sharding={layout}", *behind, stop=17))
    cases.append(case("bf16", "training.precision=bf16", "machine.sharding=full", "machine.profile=2"))
    together(folder, 2, cases)
    newest = max((folder / "muon").glob("runs/*/checkpoints/step-*"))
    shutil.copytree(newest, folder / "checkpoint")
    damage(newest / "shard-00002-model-00001-of-00001.safetensors")
    for rule in RESUMED:
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, 34)
            with pytest.raises(SystemExit):
                train(folder / rule, *words(rule, "cautious"))
    ends = [case(rule, *words(rule, "cautious"), f"machine.sharding={layout}") for rule, (_, layout) in RESUMED.items()]
    together(folder, 2, ends)
    return folder


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 64
    path.write_bytes(content)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run that one process trains, by rule and mode; computed once."""
    known: dict[tuple[str, str], Record] = {}

    def of(rule: str, mode: str) -> Record:
        if (rule, mode) not in known:
            known[rule, mode] = train(tmp_path_factory.mktemp("alone"), *words(rule, mode)).record
        return known[rule, mode]

    return of


def only(folder: Path) -> Record:
    [record] = all_records(folder / "runs")
    return record


def numbers(record: Record) -> list[dict[str, Any]]:
    """All lines of the metrics that are no timings, flat."""
    lines = [line for line in read_metrics(record.metrics_file) if line["kind"] != "speed"]
    return [{**line.pop("overall", {}), **drop(line, "seconds", "tensors")} for line in lines]


def drop(line: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in names}


def assert_same(record: Record, expected: Record) -> None:
    assert record.key == expected.key
    assert record.summary is not None
    assert expected.summary is not None
    assert record.summary["pairing"] == expected.summary["pairing"]
    found, lines = numbers(record), numbers(expected)
    assert len(found) == len(lines) > STEPS
    for one, other in zip(found, lines, strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=CLOSE, abs=1e-14)
    weights = load_file(expected.folder / "model" / "model.safetensors")
    torch.testing.assert_close(load_file(record.folder / "model" / "model.safetensors"), weights, rtol=1e-6, atol=CLOSE)
    assert {value.dtype for value in weights.values()} == {torch.float64}


@pytest.mark.parametrize(("rule", "mode", "layout"), QUICK)
def test_two_processes_train_what_one_trains(rule, mode, layout, folder, alone):
    record = only(folder / f"{rule} {mode} {layout}")
    assert_same(record, alone(rule, mode))
    environment = (record.folder / "environment.jsonl").read_text()
    assert environment.count('"processes": 2') == 1  # the second start found it
    assert f'"sharding": "{layout}"' in environment


@pytest.mark.parametrize("rule", RESUMED)
def test_a_run_goes_on_with_fewer_and_more_processes_and_another_layout(rule, folder, alone):
    """2, 1, 2 processes; of the first Muon run, the newest checkpoint is damaged and the one before is used, which
    threads have written.
    """
    record = only(folder / rule)
    assert_same(record, alone(rule, "cautious"))
    starts = (record.folder / "environment.jsonl").read_text().splitlines()
    assert ['"processes": 2' in line for line in starts] == [True, False, True]
    lines = map(json.loads, record.metrics_file.read_text().splitlines())
    resumes = [line["step"] for line in lines if line["kind"] == "resume"]
    assert resumes == [16 if rule == "muon" else 17, 34]


def test_in_bfloat16_a_divided_model_trains_close_to_a_whole_one_and_keeps_float32(folder, tmp_path):
    record = only(folder / "bf16")
    expected = train(tmp_path, "training.precision=bf16").record
    found, others = ([line["loss"] for line in read_metrics(r.metrics_file, "train")] for r in (record, expected))
    assert found == pytest.approx(others, rel=2e-3)
    assert found != others
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(record.folder / "model").parameters()} == {
        torch.float32
    }
    assert (record.folder / "trace.json").exists()


def test_the_final_model_of_a_divided_run_is_that_of_a_whole_one(folder, alone):
    record, expected = only(folder / "adamw cautious full"), alone("adamw", "cautious")
    for name in ("config.json", "generation_config.json"):
        assert (record.folder / "model" / name).read_text() == (expected.folder / "model" / name).read_text()
    model = AutoModelForCausalLM.from_pretrained(record.folder / "model")
    assert model.lm_head.weight.data_ptr() == model.embed.weight.data_ptr()
    inputs = torch.arange(12)[None]
    logits = AutoModelForCausalLM.from_pretrained(expected.folder / "model")(input_ids=inputs).logits
    torch.testing.assert_close(model(input_ids=inputs).logits, logits)


def test_a_divided_checkpoint_holds_nothing_that_could_run_code(folder):
    newest = folder / "checkpoint"
    names = sorted(path.name for path in newest.iterdir())
    parts = [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]
    assert names == ["checksum.json", *parts, "state.pt"]
    state = torch.load(newest / "state.pt", weights_only=True)
    assert state["step"] == 17
    assert "model" not in state
    whole = [load_file(newest / part) for part in parts]
    assert sum(part["model.layers.0.ffn.up.weight"].numel() for part in whole) == 8 * 24 * 24
    assert not {"model.lm_head.weight"} & (whole[0].keys() | whole[1].keys())  # tied, and there once


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_optimizer_mode_and_layout_trains_what_one_process_trains(tmp_path, alone):
    together(tmp_path, 2, [cell(*one) for one in MATRIX], LONG)
    for rule, mode, layout in MATRIX:
        assert_same(only(tmp_path / f"{rule} {mode} {layout}"), alone(rule, mode))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_optimizer_goes_on_with_fewer_and_more_processes(tmp_path, alone):
    kinds = [
        (rule, mode, *layouts) for rule in RULES for mode in MODES for layouts in (("full", "none"), ("none", "full"))
    ]
    together(tmp_path, 2, [resumed(*kind, start=0, stop=17) for kind in kinds], LONG)
    together(tmp_path, 1, [resumed(rule, mode, a, "none", start=1, stop=34) for rule, mode, a, _ in kinds], LONG)
    together(tmp_path, 2, [resumed(*kind, start=1) for kind in kinds], LONG)
    for rule, mode, first, _ in kinds:
        assert_same(only(tmp_path / f"{rule} {mode} {first}"), alone(rule, mode))


def resumed(rule: str, mode: str, first: str, then: str, start: int, **how: int) -> Case:
    layout = then if start else first
    return case(f"{rule} {mode} {first}", *words(rule, mode), f"machine.sharding={layout}", **how)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mesh_of_two_by_two_trains_what_one_process_trains(tmp_path, alone):
    layout = ["training.batch_size=4", "machine.sharding=hybrid", "machine.shard_size=2"]
    stopped = case("stopped", *words("muon", "cautious"), *layout, stop=20)
    together(tmp_path, 4, [case("mesh", *words("muon", "cautious"), *layout), stopped], LONG)
    assert_same(only(tmp_path / "mesh"), alone("muon", "cautious"))
    train(tmp_path / "stopped", *words("muon", "cautious"))
    assert_same(only(tmp_path / "stopped"), alone("muon", "cautious"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", ["none", "full"])
def test_compiled_models_train_alike_on_two_processes(layout, tmp_path):
    short = ["training.steps=4", "machine.log_every=1", "evaluation.every=4"]
    together(tmp_path, 2, [case("compiled", *short, "machine.compile=true", f"machine.sharding={layout}")], LONG)
    expected = train(tmp_path / "plain", *short).record
    found, others = (
        [line["loss"] for line in read_metrics(r.metrics_file, "train")]
        for r in (only(tmp_path / "compiled"), expected)
    )
    assert found == pytest.approx(others, rel=1e-4)
