"""Fine-tuning: what is read and learned, the paper's methods on adapters and on whole weights, what is saved."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cwd.config import Config
from cwd.data.exercises import exercises
from cwd.data.export import as_hugging_face
from cwd.data.instructions import IGNORED, encode, lay_out, parse, prepare_instructions, read_instructions, segments
from cwd.data.tokenizers import ByteTokenizer
from cwd.errors import UserError
from cwd.models import build
from cwd.runs import Record
from cwd.sweeps import compose_config
from cwd.training.optimizer import build_optimizer
from cwd.training.pretrained import find_source
from cwd.training.run import run
from cwd.training.tasks.finetune import FinetuneTask
from tests.conftest import ROOT
from tests.training_helpers import outcome, train

BYTES = as_hugging_face(ByteTokenizer())
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """A folder, and a small pretrained run in it."""
    folder = tmp_path_factory.mktemp("base")
    return folder, train(folder, "model=simply_15k", "training.steps=20").record


def finetuning(folder: Path, source: str, *more: str) -> Config:
    place = [f"machine.runs={folder}/runs", f"machine.data={folder}/data", "machine.progress=summary"]
    few = ["training.steps=6", "training.seq_len=96", "evaluation.every=3", "telemetry.every=0"]
    return compose_config(
        ["scale=smoke", "tracker=none", "task=finetune", f"model.source='{source}'", *place, *few, *more]
    )


def task_of(config: Config) -> FinetuneTask:
    source = find_source(config.model.source, Path(config.machine.runs), Path(config.machine.data))  # type: ignore[attr-defined]
    options: dict[str, Any] = {"template": "plain", "seq_len": 96, "packing": False, "validation_fraction": 0.05}
    data = prepare_instructions([], source.tokenizer, end=source.end, model=source.fingerprint, say=print, **options)
    return FinetuneTask(config, data, source)


def test_a_malformed_example_is_named_by_file_and_line_and_no_other_is_lost(tmp_path: Path) -> None:
    good = [{"instruction": f"say {i}", "output": str(i)} for i in range(4)]
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    lines = [
        json.dumps(good[0]), "{broken", json.dumps({"instruction": "x", "output": 3}), json.dumps(good[1]), "",
        json.dumps({"messages": [{"role": "robot", "content": "x"}]}), json.dumps(chat), "[1]", json.dumps(shared),
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.json").write_text("[\n" + json.dumps(good[2], indent=1) + ",\n{},\n" + json.dumps(good[3]) + "\n]")
    said: list[str] = []
    found = read_instructions([str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")], said.append)
    assert {one.turns[-1][1] for one in found} == {"0", "1", "2", "3", "ho", "b"}
    places = [line.split(": ")[1] for line in said]
    assert places == [f"{tmp_path}/a.jsonl:{n}" for n in (2, 3, 6, 8)] + [f"{tmp_path}/b.json:6"]
    assert "output must be text" in said[1]
    (tmp_path / "c.json").write_text('[\n{"instruction": "x", "output": "y"},\n{oops}]')
    with pytest.raises(UserError, match=r"c\.json:3: is not JSON"):
        read_instructions([str(tmp_path / "c.json")], said.append)


def test_alpacas_prompt_is_alpacas_and_only_the_answer_is_learned() -> None:
    example = parse({"instruction": "Add.", "input": "1 2", "output": "3"})
    prompt = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
        "### Input:\n1 2\n\n### Response:\n"
    )
    assert segments(example, "alpaca", None) == [(prompt, False), ("3", True)]
    ids, learned = encode(segments(example, "alpaca", None), BYTES, 0)
    assert bytes(ids) == prompt.encode() + b"3\0"
    assert learned == [False] * len(prompt) + [True, True]


def test_of_a_conversation_every_answer_is_learned_in_the_models_own_template() -> None:
    tokenizer = as_hugging_face(ByteTokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    example = parse({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert segments(example, "chat", tokenizer) == [
        ("<user>a</s><assistant>", False), ("b</s>", True), ("<user>c</s><assistant>", False), ("d</s>", True),
    ]  # fmt: skip


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, **shape)).eval()


@pytest.mark.parametrize("make", [lambda: build("simply", vocab_size=256, seq_len=96, **SHAPE).eval(), llama])
@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_the_mean_over_answer_tokens_however_rows_are_laid_out(
    make: Callable[[], Any], packing: bool
) -> None:
    torch.manual_seed(0)
    model = make()
    encoded = [encode(segments(parse(one), "plain", BYTES), BYTES, 0) for one in exercises()[:12]]
    rows = lay_out(encoded, 96, packing)
    assert (len(rows) < 12) == packing
    losses = []  # each example by itself
    for ids, learned in encoded:
        logits = model(torch.tensor([ids])).logits[0].double()
        each = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        losses += each[torch.tensor(learned[1:])].tolist()
    assert (rows.labels != IGNORED).sum() == len(losses)
    from cwd.training.tasks.finetune import _tensors

    batch = _tensors(rows, np.arange(len(rows)))
    task = FinetuneTask.__new__(FinetuneTask)
    pieces = [{name: table[i : i + 1] for name, table in batch.items()} for i in range(len(rows))]
    with torch.no_grad():
        whole = task.loss(model, batch).item()
        parts = sum(task.loss(model, piece).item() / len(rows) for piece in pieces)
    assert [whole, parts] == pytest.approx([np.mean(losses)] * 2, rel=1e-5)


def adam(g: np.ndarray, state: dict[str, Any]) -> np.ndarray:
    """The final update of Adam, betas 0.9 and 0.95, eps 1e-8, in float64."""
    state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.95 * state.get("v", 0) + 0.05 * g * g
    m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.95 ** state["t"])
    return m / (np.sqrt(v) + 1e-8)


def selective_projection(
    x: np.ndarray, start: Any, u: np.ndarray, g: np.ndarray, lr: float, weight: float
) -> np.ndarray:
    """arXiv 2411.01713: where -<g, x - x0> < 0, back by the ratio of how much the step grew the distance."""
    plain = x - lr * u
    if -np.sum(g * (x - start)) >= 0:
        return plain
    before, after = np.linalg.norm(x - start), np.linalg.norm(plain - start)
    return plain - weight * max(0.0, after - before) / after * (plain - start)


def inner_product(x: np.ndarray, start: Any, u: np.ndarray, g: np.ndarray, lr: float, weight: float) -> np.ndarray:
    """The ablation of Table 5: the whole tensor decays iff <u, x> >= 0."""
    return x - lr * u - lr * weight * float(np.sum(u * (x - start)) >= 0) * (x - start)


def cautious(x: np.ndarray, start: Any, u: np.ndarray, g: np.ndarray, lr: float, weight: float) -> np.ndarray:
    """Algorithm 1."""
    return x - lr * u - lr * weight * (u * (x - start) >= 0) * (x - start)


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("towards", ["zero", "start"])
@pytest.mark.parametrize("method", [selective_projection, inner_product, cautious])
def test_the_papers_methods_on_adapters_and_on_whole_weights(
    base: tuple[Path, Record], method: Callable[..., np.ndarray], towards: str, adapter: str
) -> None:
    if adapter == "lora":
        pytest.importorskip("peft")
    mode = {"selective_projection": "spd"}.get(method.__name__, method.__name__)
    weight = 0.7 if mode == "spd" else 2.0
    words = [f"decay={mode}", f"decay.weight_decay={weight}", f"decay.towards={towards}", f"model.adapter={adapter}"]
    config = finetuning(base[0], base[1].key, *words, "training.batch_size=4", "optimizer.lr=1e-2")
    task = task_of(config)
    torch.manual_seed(0)
    model = task.build_model()
    optimizer, _ = build_optimizer(config, model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(("lora_" in name) == (adapter == "lora") for name in trained)
    wanted = {name: p.detach().double().numpy().copy() for name, p in trained.items()}
    start = {name: x.copy() if towards == "start" else 0.0 for name, x in wanted.items()}
    states: dict[str, dict[str, Any]] = {name: {} for name in trained}
    moved = 0
    for step in range(4):
        optimizer.zero_grad()
        task.loss(model, task.batch(step)).backward()
        for name, p in trained.items():
            assert p.grad is not None
            g = p.grad.double().numpy()
            u = adam(g, states[name])
            after = method(wanted[name], start[name], u, g, 1e-2, weight)
            moved += not np.allclose(after, wanted[name] - 1e-2 * u, atol=1e-9)
            wanted[name] = after
        optimizer.step()
        for name, p in trained.items():
            # eps tells where a gradient is nothing but rounding: there Adam's step is any number up to one rate.
            sure = np.abs(states[name]["m"]) > 1e-7
            np.testing.assert_allclose(p.detach().numpy()[sure], wanted[name][sure], rtol=2e-3, atol=2e-5)
            # Elsewhere, so that the signs of update and distance are any: a few steps lead straight from the start.
            p.data.add_(torch.randn(p.shape), alpha=0.05)
            wanted[name] = p.detach().double().numpy().copy()
    assert moved > 4


def test_adapters_are_saved_and_merged(base: tuple[Path, Record]) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run(finetuning(base[0], base[1].key[:6]))
    assert result.summary is not None
    folder = result.record.folder / "model"
    ids = torch.tensor([list(b"Give the last word.\nfor if\n")])
    merged = AutoModelForCausalLM.from_pretrained(folder)
    first = AutoModelForCausalLM.from_pretrained(base[1].folder / "model")
    before = first(ids).logits
    adapted = peft.PeftModel.from_pretrained(first, folder / "adapter")
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
    assert (merged(ids).logits - before).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(folder).encode("a b") == list(b"a b")
    again = run(finetuning(base[0], base[1].key))
    assert again.record.key == result.record.key  # a run's key, or its first digits
    assert result.record.description["data"]["heldout"] == base[1].description["data"]["fingerprint"]


def test_whole_weights_are_a_model_like_any_other(base: tuple[Path, Record]) -> None:
    result = run(finetuning(base[0], str(base[1].folder / "model"), "model.adapter=none", "dataset.packing=true"))
    assert result.summary is not None
    assert not (result.record.folder / "model" / "adapter").exists()
    assert find_source(result.record.key, base[0] / "runs", base[0] / "data").folder == result.record.folder / "model"


def test_what_a_cache_holds_of_a_model_is_completed_from_the_hub(
    base: tuple[Path, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a tokenizer was asked for before: huggingface_hub takes that folder for the model."""
    model, commit = base[1].folder / "model", "c" * 40
    snapshot = tmp_path / "models--some--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(model / name, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    real, asked = huggingface_hub.snapshot_download, []

    def download(name: str, *, local_files_only: bool, **options: Any) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            shutil.copytree(model, snapshot, dirs_exist_ok=True)
        return real(name, local_files_only=True, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for _ in range(2):
        found = find_source("some/model", base[0] / "runs", base[0] / "data")
        assert found.fingerprint == find_source(str(model), base[0] / "runs", base[0] / "data").fingerprint
    assert asked == [True, False, True]  # the second time, what is in the cache is whole


def test_weights_of_which_a_part_is_missing_are_refused(base: tuple[Path, Record], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(base[1].folder / "model").save_pretrained(folder, max_shard_size="40KB")
    shutil.copy(base[1].folder / "model" / "tokenizer.json", folder)
    shutil.copy(base[1].folder / "model" / "tokenizer_config.json", folder)
    assert find_source(str(folder), base[0] / "runs", base[0] / "data").folder == folder
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(UserError, match=f"{last.name} is not there"):
        find_source(str(folder), base[0] / "runs", base[0] / "data")


KILLED = """
import os, signal, sys
from cwd.training import saving
from tests.test_finetune import finetuning
from cwd.training.run import run
from pathlib import Path
real, calls = saving.write_checkpoint, []
def save(*arguments):
    real(*arguments)
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
saving.write_checkpoint = save
run(finetuning(Path(sys.argv[1]), sys.argv[2], *sys.argv[3:]))
"""


@pytest.mark.parametrize("decay", [["decay=cautious"], ["decay=spd", "decay.towards=start"]], ids=["cautious", "spd"])
def test_a_killed_fine_tuning_ends_as_one_left_alone(
    base: tuple[Path, Record], decay: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    words = [*decay, "model.dropout=0.1", "machine.checkpoint_seconds=0", f"machine.data={base[0]}/data"]
    source = str(base[1].folder / "model")
    alone = run(finetuning(tmp_path / "alone", source, *words))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), source, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == -9, done.stderr
    killed = run(finetuning(tmp_path / "killed", source, *words))
    assert killed.record.key == alone.record.key
    one, other = outcome_without_adapter(killed.record), outcome_without_adapter(alone.record)
    assert [line for line in one["metrics"] if line["kind"] == "eval"] == [
        line for line in other["metrics"] if line["kind"] == "eval"
    ]
    assert one["summary"] == other["summary"]
    assert one["weights"] == other["weights"]
    assert math.isfinite(one["summary"]["loss"])


def outcome_without_adapter(record: Record) -> dict[str, Any]:
    """The outcome; the adapter's folder is compared by its file of weights."""
    adapter = record.folder / "model" / "adapter"
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    for path in adapter.iterdir():
        path.unlink()
    adapter.rmdir()
    found = outcome(record)
    found["weights"]["adapter"] = weights
    return found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing-here"], "model.source=nothing-here: no run in"),
        (["model.targets=[nowhere]"], r"model.targets=\['nowhere'\]"),
        (["training.seq_len=4"], "0 examples can be used"),
        (["dataset.files=[a.csv]"], "must be .json or .jsonl"),
    ],
)
def test_what_cannot_be_is_one_line(
    base: tuple[Path, Record], words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "model.targets=[nowhere]" in words:
        pytest.importorskip("peft")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = words[0] if words == ["nothing-here"] else base[1].key
    with pytest.raises(UserError, match=message):
        run(finetuning(base[0], source, *(word for word in words if "=" in word)))


def test_instructions_are_for_pretrained_models_only() -> None:
    with pytest.raises(UserError, match="fine-tuning takes instructions and pretrained together"):
        compose_config(["scale=smoke", "dataset=instructions"])
