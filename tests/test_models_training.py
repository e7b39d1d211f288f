"""Every model through the trainer: each file of configs/model made narrow, and the ways to save memory and time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from cwd import schema
from cwd.errors import UserError
from cwd.models import build, loss
from cwd.optim import RuleOptimizer
from cwd.runs import read_metrics
from cwd.sweeps import CONFIGS
from cwd.training.tasks import language
from cwd.training.tasks.language import attention
from tests.test_cli import command
from tests.training_helpers import smoke_config, train

MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
FEW = ["training.steps=2", "evaluation.sequences=4", "training.batch_size=2", "telemetry.every=1"]
NARROW = ["model.embedding_size=null", *FEW]
SHALLOW = [*NARROW, "model.num_hidden_layers=2", "machine.log_every=1"]
FAMILIES = ["simply_30k", "olmo_1b", "qwen3_600m", "gpt2"]  # one of each


def language_models() -> list[str]:
    return [name for name in MODELS if "hidden_size" in (CONFIGS / "model" / f"{name}.yaml").read_text()]


def narrowest(folder: Path, name: str) -> str:
    """The largest `shrink` that the model takes."""
    model = smoke_config(folder, f"model={name}").model
    head = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    return f"model.shrink={math.gcd(model.hidden_size, head // 2, getattr(model, 'intermediate_size', 0))}"


def losses(result) -> list[float]:
    return [line["loss"] for line in read_metrics(result.record.metrics_file, "train")]


# ---- every file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", language_models())
def test_every_model_trains_and_evaluates_at_a_small_width(name, tmp_path, fast_disk):
    result = train(tmp_path, f"model={name}", narrowest(tmp_path, name), "optimizer=muon", *NARROW)
    assert result.state == "done"
    assert 4 < result.summary["loss"] < 8  # near ln 256 = 5.5
    line = read_metrics(result.record.metrics_file, "telemetry")[-1]
    assert line  # every tensor was measured


def test_train_py_itself_takes_the_papers_scale_made_small(tmp_path):
    small = ["model.shrink=64", "training.seq_len=32", "training.precision=fp32", "tracker=none", *FEW]
    (tmp_path / "notes").mkdir()
    for i in range(10):
        (tmp_path / "notes" / f"{i}.txt").write_text(f"Text number {i} is long enough for a few sequences. " * 20)
    data = ["dataset=text", "dataset.files=[notes]", "dataset.validation_fraction=0.2"]
    place = [f"machine.runs={tmp_path}/runs", f"machine.data={tmp_path}/data", "machine.threads=1"]
    done = command("train.py", "scale=paper", *small, *data, *place, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout + done.stderr


def test_a_table_of_the_models_own_size_is_trained(tmp_path):
    result = train(tmp_path, "model=gpt2", "model.shrink=32", "model.embedding_size=300", *FEW)
    assert result.summary["parameters"] == (300 + 1024) * 24 + 12 * (12 * 24**2 + 13 * 24) + 2 * 24
    with pytest.raises(UserError, match=r"model.embedding_size=100: the data's tokenizer has 256 ids"):
        train(tmp_path, "model=olmo_1b", "model.shrink=64", "model.embedding_size=100", *FEW)


# ---- the loss by chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_by_chunks_a_run_is_the_same_to_rounding(name, tmp_path, monkeypatch, fast_disk):
    overrides = [f"model={name}", narrowest(tmp_path, name), *SHALLOW, "training.steps=4"]
    whole = train(tmp_path / "whole", *overrides)
    monkeypatch.setattr(language, "ALL_LOGITS", 0)
    monkeypatch.setattr(loss, "CHUNK", 10 * 256)
    chunks = train(tmp_path / "chunks", *overrides)
    assert losses(chunks) == pytest.approx(losses(whole), rel=1e-5)
    for metric in ("loss", "accuracy"):
        assert chunks.summary[metric] == pytest.approx(whole.summary[metric], rel=1e-4)


def test_no_small_run_goes_by_chunks(tmp_path):
    """16 x 128 tokens, the laptop's batch, of up to 65,536 classes."""
    config = smoke_config(tmp_path, "scale=laptop")
    assert config.training.batch_size * config.training.seq_len * 65_536 <= language.ALL_LOGITS
    assert language.ALL_LOGITS < 2048 * 100_864  # one sequence of the paper's


# ---- memory and speed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_activation_checkpointing_computes_layers_again_and_changes_nothing(name, tmp_path, monkeypatch, fast_disk):
    overrides = [f"model={name}", narrowest(tmp_path, name), *SHALLOW]
    plain = train(tmp_path / "plain", *overrides)
    calls = 0
    real = torch.utils.checkpoint.checkpoint

    def counted(function, *arguments, use_reentrant, **options):
        nonlocal calls
        calls += 1
        assert not use_reentrant
        return real(function, *arguments, use_reentrant=use_reentrant, **options)

    monkeypatch.setattr("transformers.modeling_utils.checkpoint", counted)
    saving = train(tmp_path / "saving", *overrides, "machine.activation_checkpointing=true")
    assert saving.record.key == plain.record.key
    assert losses(saving) == losses(plain)
    assert saving.summary["loss"] == plain.summary["loss"]
    assert calls == 2 * 2  # layers, updates; evaluation keeps nothing


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bfloat16_masters_gradients_and_state_are_float32(name, tmp_path, monkeypatch, fast_disk):
    seen, products = [], []
    real_step, real_linear = RuleOptimizer.step, torch.nn.functional.linear

    def step(self, closure=None):
        value = real_step(self, closure)
        tensors = [p for group in self.param_groups for p in group["params"]]
        state = [t for p in tensors for t in self.state[p].values() if isinstance(t, torch.Tensor) and t.ndim]
        seen.extend(t.dtype for t in (*tensors, *(p.grad for p in tensors), *state))
        return value

    monkeypatch.setattr(RuleOptimizer, "step", step)
    monkeypatch.setattr(language, "ALL_LOGITS", 0)
    monkeypatch.setattr(loss.F, "linear", lambda x, *rest: products.append(x.dtype) or real_linear(x, *rest))
    overrides = [f"model={name}", narrowest(tmp_path, name), *SHALLOW, "optimizer=muon"]
    result = train(tmp_path, *overrides, "training.precision=bf16")
    assert set(seen) == {torch.float32}
    assert torch.bfloat16 in products
    assert 4 < result.summary["loss"] < 8


@pytest.mark.slow  # two compilations
@pytest.mark.parametrize("limit", [language.ALL_LOGITS, 0], ids=["all logits", "chunks"])
def test_a_compiled_run_has_the_losses_of_an_eager_one(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(language, "ALL_LOGITS", limit)
    overrides = ["model=simply_30k", *FEW, "training.steps=4", "machine.log_every=1"]
    eager, compiled = train(tmp_path / "e", *overrides), train(tmp_path / "c", *overrides, "machine.compile=true")
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-5)


# ---- attention -------------------------------------------------------------------------------------------------------


def simply(**fields) -> schema.Simply:
    return schema.Simply(**{"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, **fields})


def test_attention_suits_model_and_device(monkeypatch):
    cpu, auto = schema.Machine(device="cpu"), schema.Machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert attention(simply(), cpu) is None
    assert attention(simply(), auto) == "flex_attention"
    assert attention(simply(shrink=2), auto) == "flex_attention"
    assert attention(simply(head_dim=24), auto) == attention(simply(shrink=4), auto) == "eager"
    assert attention(simply(attn_softcap=None), auto) == "sdpa"
    assert attention(schema.GPT2(hidden_size=64, num_hidden_layers=1, num_attention_heads=2), auto) is None
    assert attention(simply(), schema.Machine(attention="eager")) == "eager"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attention(simply(), auto) is None
    with pytest.raises(UserError, match="flex_attention: cannot train on a CPU"):
        attention(simply(), schema.Machine(attention="flex_attention"))


def test_attention_is_no_part_of_a_run_and_is_what_was_asked_for(tmp_path, fast_disk):
    overrides = ["model=gpt2", "model.shrink=32", *SHALLOW]
    sdpa = train(tmp_path / "sdpa", *overrides)
    eager = train(tmp_path / "eager", *overrides, "machine.attention=eager")
    assert sdpa.record.key == eager.record.key
    assert losses(eager) == pytest.approx(losses(sdpa), rel=1e-5)
    with pytest.raises(UserError, match=r"attn_implementation='sdpa'.*attn_softcap"):
        train(tmp_path, "model=simply_30k", *FEW, "machine.attention=sdpa")


def test_flex_attention_equals_eager_as_far_as_a_cpu_goes():
    """The forward: flex attention has no backward on a CPU."""
    ids, logits = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0)), []
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32, "attn_softcap": 2.0}
    for implementation in ("eager", "flex_attention"):
        torch.manual_seed(0)
        model = build("simply", vocab_size=50, seq_len=40, attn_implementation=implementation, **shape).eval()
        with torch.no_grad():
            for layer in model.layers:
                layer.attn.q_proj.weight.mul_(8.0)  # scores far into the cap
            logits.append(model(input_ids=ids).logits)
    assert_close(logits[1], logits[0], rtol=0, atol=1e-4)


# ---- at full width ---------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a minute or two, and 6 GB
@pytest.mark.timeout(1200)
def test_one_update_of_the_111m_model_at_full_width(tmp_path):
    """The paper's smallest model with its whole table, one sequence of 2,048 bytes, evaluated before and after."""
    size = ["model=simply_111m", "model.embedding_size=100864", "training.seq_len=2048"]
    once = ["training.batch_size=1", "training.steps=1", "schedule.warmup=0", "evaluation.sequences=1"]
    result = train(tmp_path, *size, *once, "optimizer.lr=1e-3")
    assert result.summary["parameters"] == 110_550_528
    before, after = (line["loss"] for line in read_metrics(result.record.metrics_file, "eval"))
    assert before == pytest.approx(math.log(100_864) + 0.5, abs=0.3)  # logits of variance 1
    assert after < before
