"""The trainer: what it computes, what it records, and what it does when things go wrong."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cwd.data.batches import evaluation_rows, inputs_and_targets, rows
from cwd.errors import UserError
from cwd.models import build
from cwd.optim import RuleOptimizer
from cwd.runs import all_records, read_metrics
from cwd.schema import WSD, Constant, Cosine
from cwd.training import saving, wandb_sink
from cwd.training.schedule import lr_factor
from cwd.training.sources import load_tokens
from cwd.training.tasks.language import LanguageTask
from tests.training_helpers import outcome, smoke_config, train

ROOT = Path(__file__).resolve().parents[1]
OPTIMIZERS = ("adamw", "lion", "muon", "sgd")


# --- what is computed ---------------------------------------------------------------------------------------------


def bare_loop(config, data) -> tuple[list[float], torch.nn.Module]:
    """The same run without any of our trainer, optimizer or task: torch's AdamW, a schedule by hand, a plain loop."""
    torch.manual_seed(config.seed)
    shape = {name: value for name, value in vars(config.model).items() if name != "family"}
    model = build("simply", vocab_size=256, seq_len=config.training.seq_len, **shape)
    own = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), own.lr, tuple(own.betas), own.eps, weight_decay=config.decay.weight_decay, foreach=False
    )
    losses, steps = [], config.training.steps
    for step in range(steps):
        warmup = round(0.05 * steps)
        t = step + 1
        p = max(0, (t - warmup) / (steps - warmup))
        factor = min(1, t / warmup) * (0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2)
        optimizer.param_groups[0]["lr"] = own.lr * factor
        picked = rows(data.tokens("train"), seed=config.seed, step=step, batch_size=4, seq_len=32)
        inputs, targets = map(torch.from_numpy, inputs_and_targets(picked))
        loss = F.cross_entropy(model(input_ids=inputs).logits.transpose(1, 2), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model


def test_a_decoupled_adamw_run_is_a_bare_loop_with_torchs_adamw(tmp_path):
    overrides = ("decay=decoupled", "machine.log_every=1")
    record = train(tmp_path, *overrides).record
    config = smoke_config(tmp_path, *overrides)
    losses, model = bare_loop(config, load_tokens(config, print))
    # Both are float32 and differ in the order of a few roundings a step, which 20 steps of training may amplify.
    assert [line["loss"] for line in read_metrics(record.metrics_file, "train")] == pytest.approx(losses, rel=2e-5)
    trained = AutoModelForCausalLM.from_pretrained(record.folder / "model")
    for (name, a), b in zip(trained.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_both_arms_of_a_seed_share_initial_weights_and_every_batch(optimizer, tmp_path):
    arms = [train(tmp_path, f"optimizer={optimizer}", f"decay={mode}") for mode in ("decoupled", "cautious", "none")]
    pairings = [arm.summary["pairing"] for arm in arms]
    assert pairings[0] == pairings[1] == pairings[2]
    assert len({arm.record.key for arm in arms}) == 3
    assert len({arm.summary["loss"] for arm in arms}) == 3
    other = train(tmp_path, f"optimizer={optimizer}", "seed=1").summary["pairing"]
    assert other["weights"] != pairings[0]["weights"]
    assert other["batches"] != pairings[0]["batches"]


def test_the_hash_of_batches_is_the_hash_of_what_the_model_was_fed(tmp_path, monkeypatch):
    fed = []
    real = LanguageTask.loss

    def watched(self, model, batch):
        fed.append(batch["inputs"].clone())
        return real(self, model, batch)

    monkeypatch.setattr(LanguageTask, "loss", watched)
    hashes = {train(tmp_path, "machine.micro_batch_size=2").summary["pairing"]["batches"]}
    config = smoke_config(tmp_path)
    data = load_tokens(config, print)
    expected = [rows(data.tokens("train"), seed=0, step=step, batch_size=4, seq_len=32) for step in range(20)]
    assert torch.cat(fed).numpy()[:, 1:].tolist() == np.concatenate(expected)[:, :-1].tolist()
    hashes.add(train(tmp_path, "decay=none").summary["pairing"]["batches"])
    assert len(hashes) == 1


def test_accumulation_over_micro_batches_is_the_whole_batch_to_rounding(tmp_path):
    losses = []
    for size in (4, 2, 1):
        record = train(tmp_path / str(size), f"machine.micro_batch_size={size}", "machine.log_every=1").record
        losses.append([line["loss"] for line in read_metrics(record.metrics_file, "train")])
    assert losses[0] != losses[2]  # another order of sums: the comparison is not of a thing with itself
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_the_gradient_is_clipped_to_the_norm_and_its_norm_before_is_recorded(tmp_path, monkeypatch):
    seen = []
    real = RuleOptimizer.step

    def watched(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return real(self, closure)

    monkeypatch.setattr(RuleOptimizer, "step", watched)
    record = train(tmp_path, "training.clip_norm=0.01", "machine.log_every=1").record
    norms = [line["grad_norm"] for line in read_metrics(record.metrics_file, "train")]
    assert min(norms) > 0.01
    assert seen == pytest.approx([0.01] * len(seen), rel=1e-3)
    seen.clear()
    record = train(tmp_path, "training.clip_norm=null", "machine.log_every=1").record
    norms = [line["grad_norm"] for line in read_metrics(record.metrics_file, "train")]
    assert seen == pytest.approx(norms, rel=1e-5)


def test_the_evaluation_is_the_mean_over_fixed_rows_whatever_the_seed_and_the_chunks(tmp_path):
    result = train(tmp_path, "machine.micro_batch_size=1")
    config = smoke_config(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(result.record.folder / "model")
    picked = evaluation_rows(load_tokens(config, print).tokens("validation"), 8, 32)
    inputs, targets = map(torch.from_numpy, inputs_and_targets(picked))
    with torch.no_grad():
        logits = model(input_ids=inputs).logits
    probabilities = torch.log_softmax(logits.double(), -1)
    loss = -probabilities.gather(-1, targets[..., None]).mean().item()
    accuracy = (logits.argmax(-1) == targets).double().mean().item()
    assert result.summary["loss"] == pytest.approx(loss, rel=1e-6)
    assert result.summary["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    first = [read_metrics(train(tmp_path, f"seed={seed}").record.metrics_file, "eval")[0] for seed in (0, 1)]
    assert first[0]["step"] == first[1]["step"] == 0
    assert first[0]["loss"] != first[1]["loss"]  # other weights, the same rows


def test_bf16_trains_close_to_fp32_and_is_another_run(tmp_path):
    wide, narrow = (train(tmp_path, f"training.precision={precision}") for precision in ("fp32", "bf16"))
    assert wide.record.key != narrow.record.key
    assert wide.summary["loss"] != narrow.summary["loss"]
    assert narrow.summary["loss"] == pytest.approx(wide.summary["loss"], rel=0.01)
    weights = AutoModelForCausalLM.from_pretrained(narrow.record.folder / "model")
    assert {p.dtype for p in weights.parameters()} == {torch.float32}


# --- schedules ----------------------------------------------------------------------------------------------------


def test_cosine_is_the_formula_of_the_papers_code():
    schedule, steps, warmup = Cosine(warmup=0.1, end_factor=0.1), 50, 5
    for step in range(steps):
        t = step + 1
        p = min(max((t - warmup) / (steps - warmup), 0), 1)
        expected = min(t, warmup) / warmup * (0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2)
        assert lr_factor(schedule, step, steps) == pytest.approx(expected, rel=1e-12)
    assert lr_factor(schedule, 0, steps) == pytest.approx(0.2)
    assert lr_factor(schedule, steps - 1, steps) == pytest.approx(0.1)


def test_wsd_is_flat_then_linear_to_the_end():
    factors = [lr_factor(WSD(warmup=0.1, decay_fraction=0.2, end_factor=0.1), step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10:80] == [1.0] * 70
    assert factors[80:] == pytest.approx([1 - 0.9 * i / 20 for i in range(1, 21)])


def test_constant_is_constant_after_its_warmup():
    factors = [lr_factor(Constant(warmup=0.5), step, 10) for step in range(10)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("schedule", [Cosine(warmup=0), WSD(warmup=0), Constant(warmup=0)])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(schedule, steps):
    assert all(0 < lr_factor(schedule, step, steps) <= 1 for step in range(steps))


# --- telemetry ----------------------------------------------------------------------------------------------------


def test_telemetry_is_what_a_direct_computation_gives(tmp_path):
    torch.manual_seed(0)
    x, g = torch.randn(7, 5), torch.randn(7, 5)
    x[0, 0], g[1, 1] = 0.0, 0.0
    vector, vector_g = torch.randn(4), torch.randn(4)
    parameters = [("a", torch.nn.Parameter(x.clone())), ("b", torch.nn.Parameter(vector.clone()))]
    parameters[0][1].grad, parameters[1][1].grad = g.clone(), vector_g.clone()
    optimizer = RuleOptimizer(parameters, {"rule": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.1})
    optimizer.measure = True
    optimizer.step()
    measured = optimizer.take_measures()
    product = x * g  # with momentum 0, u is the gradient
    assert measured["tensors"]["a"]["mask_ratio"] == pytest.approx((product >= 0).float().mean().item())
    assert measured["tensors"]["a"]["strict_ratio"] == pytest.approx((product > 0).float().mean().item())
    assert measured["tensors"]["a"]["mask_ratio"] > measured["tensors"]["a"]["strict_ratio"]
    assert measured["tensors"]["b"]["rms_x"] == pytest.approx(vector.square().mean().sqrt().item())
    both = torch.cat([x.flatten(), vector])
    assert measured["overall"]["rms_x"] == pytest.approx(both.square().mean().sqrt().item())
    agree = torch.cat([product.flatten(), vector * vector_g]) >= 0
    assert measured["overall"]["mask_ratio"] == pytest.approx(agree.float().mean().item())


def test_telemetry_is_taken_on_the_chosen_steps_and_changes_nothing(tmp_path):
    results = {every: train(tmp_path, f"telemetry.every={every}") for every in (0, 1, 7)}
    steps = {
        every: [line["step"] for line in read_metrics(r.record.metrics_file, "telemetry")]
        for every, r in results.items()
    }
    assert steps == {0: [], 1: list(range(1, 21)), 7: [1, 7, 14]}
    weights = [outcome(result.record)["weights"] for result in results.values()]
    assert weights[0] == weights[1] == weights[2]


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged_at_its_step(tmp_path, monkeypatch, capsys):
    real, calls = LanguageTask.loss, []

    def broken(self, model, batch):
        calls.append(0)
        return real(self, model, batch) * (float("nan") if len(calls) == 13 else 1.0)

    monkeypatch.setattr(LanguageTask, "loss", broken)
    result = train(tmp_path)
    assert (result.state, result.summary) == ("diverged", None)
    assert result.record.status["step"] == 13
    assert "not finite at step 13" in capsys.readouterr().out
    assert result.record.summary is None
    count = len(calls)
    assert train(tmp_path).state == "diverged"
    assert len(calls) == count, "a diverged run was trained again"


def test_a_broken_state_is_never_checkpointed(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(saving, "write_checkpoint", lambda root, step, *rest: saved.append(step))
    real = LanguageTask.loss
    monkeypatch.setattr(
        LanguageTask, "loss", lambda self, m, b: real(self, m, b) * (math.inf if len(saved) == 4 else 1)
    )
    assert train(tmp_path, "machine.checkpoint_seconds=0").state == "diverged"
    assert saved == [1, 2, 3, 4]


def test_a_crash_is_a_failed_run_with_its_traceback_and_the_next_start_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LanguageTask, "measure", lambda self, model, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path)
    [record] = all_records(tmp_path / "runs")
    assert record.status["state"] == "failed"
    assert record.status["message"] == "ZeroDivisionError: division by zero"
    assert record.status["traceback"].startswith("Traceback")
    assert train(tmp_path).state == "done"


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tracker_that_fails_costs_the_run_nothing(moment, tmp_path, monkeypatch, capsys):
    class Broken:
        summary: dict = {}  # noqa: RUF012

        def log(self, values, step):
            if moment == "log":
                raise ConnectionError("no route to host")

        def finish(self, exit_code):
            if moment == "finish":
                raise TimeoutError("still uploading")

    def start(wandb, arguments, say):
        if moment == "start":
            raise OSError("disk quota")
        return Broken()

    monkeypatch.setattr(wandb_sink, "_open", start)
    result = train(tmp_path, "tracker=wandb")
    assert result.state == "done"
    assert capsys.readouterr().out.count("going on without it") == 1
    expected = train(tmp_path / "none")
    assert outcome(result.record)["metrics"] == outcome(expected.record)["metrics"]
    assert result.record.key == expected.record.key


def test_wandb_offline_writes_beside_the_record(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = train(tmp_path, "tracker=wandb")
    assert result.state == "done"
    assert list(result.record.folder.glob("wandb/offline-run-*/*.wandb"))


def test_text_shorter_than_a_sequence_is_refused_before_anything_is_written(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"short {name}")
    with pytest.raises(UserError, match="seq_len"):
        train(tmp_path, "dataset=text", f"dataset.files=[{tmp_path}/a.txt,{tmp_path}/b.txt]")
    assert not (tmp_path / "runs").exists()


def test_a_group_that_its_rule_cannot_take_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"optimizer.groups: .*matrices"):
        train(tmp_path, "optimizer=muon", "optimizer.groups=[{match:['*'],rule:muon}]")


# --- more than one process ----------------------------------------------------------------------------------------


def test_two_processes_train_the_run_that_one_process_trains(tmp_path):
    """Losses agree while rounding has not grown: AdamW without a mask has no jumps."""
    overrides = ["decay=decoupled", "machine.log_every=1", "machine.device=cpu"]
    place = [f"machine.runs={tmp_path}/runs", f"machine.data={tmp_path}/data", "machine.progress=lines"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29731"]
    command = [*launch, str(ROOT / "train.py"), "scale=smoke", "tracker=none", *place, *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("done ") == 1
    [record] = all_records(tmp_path / "runs")
    alone = train(tmp_path / "alone", *overrides).record
    assert record.key == alone.key
    assert '"processes": 2' in (record.folder / "environment.jsonl").read_text()
    two, one = ([line["loss"] for line in read_metrics(r.metrics_file, "train")] for r in (record, alone))
    assert two == pytest.approx(one, rel=1e-4)
    assert record.summary["pairing"] == alone.summary["pairing"]
    assert record.summary["loss"] == pytest.approx(alone.summary["loss"], rel=1e-4)
