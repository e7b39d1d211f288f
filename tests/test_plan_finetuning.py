"""Plans of fine-tuning: the published models' sizes, adapters against counts by hand and the allocator's record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cwd.evidence.render import to_markdown
from cwd.planning.bases import Bases
from cwd.planning.check import memory_row
from cwd.planning.devices import find_device
from cwd.planning.evaluating import LENGTH
from cwd.planning.memory import Setting, memory_of
from cwd.planning.page import page
from cwd.planning.plan import Request, make_plan
from cwd.planning.work import Unplanned, Work, work_of
from cwd.sweeps import compose_config

LLAMA = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
LENGTH_OF_ROW, BATCH, STEPS = 16, 4, 10


def work(source: str, *words: str, runs: Path = Path("nowhere")) -> Work:
    about = asdict(compose_config(["scale=laptop", "task=finetune", f"model.source={source}", *words]))
    return work_of(about, {}, on_cpu=True, bases=Bases(runs, {}))


@pytest.fixture
def llama(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return str(tmp_path)


def small(source: str, *words: str) -> Work:
    sizes = [f"training.seq_len={LENGTH_OF_ROW}", f"training.batch_size={BATCH}", f"training.steps={STEPS}"]
    return work(source, *sizes, "evaluation.every=5", "evaluation.sequences=8", "model.rank=2", *words)


@pytest.mark.parametrize(
    ("source", "total", "layers", "sides"),
    [  # model cards: 1.1B and 7.24B parameters; sides: in + out of q, k, v, o, gate, up, down
        ("TinyLlama/TinyLlama_v1.1", 1_100_048_384, 22, 2 * 4096 + 2 * 2304 + 3 * (2048 + 5632)),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096, 32, 2 * 8192 + 2 * 5120 + 3 * (4096 + 14336)),
    ],
)
def test_the_papers_models_are_known_without_the_hub(source: str, total: int, layers: int, sides: int) -> None:
    from cwd.planning.shapes import TunedShape, items_of

    about = asdict(compose_config(["scale=paper", "task=finetune", f"model.source={source}"]))
    base = Bases(Path("nowhere"), {}).find(source)
    assert base is not None
    assert base.hub is not None
    shape = TunedShape(base.hub, 32_000, 512, items_of(about["model"], ("family", "source")))
    from cwd.planning.memory import parameters_of

    held = parameters_of(shape, about["optimizer"], "cautious")
    learned = sum(one.elements for one in held if one.rule)
    assert learned == 16 * layers * sides
    assert sum(one.elements for one in held) == total + learned


def test_operations_and_memory_of_adapters_are_those_counted_by_hand(llama: str) -> None:
    found = small(llama)
    width, inner, layers, tokens, rank = 32, 80, 2, LENGTH_OF_ROW, 2
    linear = layers * (4 * width * width + 3 * width * inner)
    head = 96 * width
    adapters = rank * layers * (4 * 2 * width + 3 * (width + inner))
    attention = layers * 2 * 2 * tokens * tokens * width  # of a row, forward
    forward = 2 * tokens * (linear + head + adapters) + attention
    assert found.forward == forward / tokens
    # What is frozen gives a gradient to its input alone, and q, k and v of the first layer not even that.
    first = 3 * width * width
    first_adapters = 3 * rank * width
    backward = 2 * tokens * (linear - first + head + 2 * adapters - first_adapters) + 2 * attention
    assert found.flops == STEPS * BATCH * (forward + backward) + 3 * 8 * forward
    assert found.trained == adapters
    assert found.parameters == linear + 2 * head + (2 * layers + 1) * width + adapters
    memory = memory_of(found.shape, found.held, Setting(micro_batch=2, on_cpu=True))
    assert (memory.weights, memory.gradients, memory.state) == (4 * found.parameters, 4 * adapters, 8 * adapters)


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_the_peak_is_what_the_allocator_records(llama: str, adapter: str) -> None:
    found = small(llama, f"model.adapter={adapter}")
    about = asdict(compose_config(["scale=laptop", "task=finetune", "model.source=any"]))["optimizer"]
    predicted, measured = memory_row(found.shape, about, "cautious", Setting(micro_batch=4, on_cpu=True))
    assert predicted == pytest.approx(measured, rel=0.05)


def test_what_is_not_known_is_said() -> None:
    with pytest.raises(Unplanned, match="the shape of some/model: no run, no folder"):
        work("some/model")


def table5(runs: Path, scale: str, **more: Any) -> Any:
    device = find_device("h100", 8) if scale == "paper" else find_device("cpu", 2)
    return make_plan(Request(("table5",), scale, runs, device, **more), lambda text: None)


def test_runs_that_go_on_from_one_that_is_not_there_are_planned_with_it(tmp_path: Path) -> None:
    plan = table5(tmp_path, "laptop")
    assert [(line.demand.size, len(line.demand.missing), line.needs) for line in plan.lines] == [
        ("tinyllama", 21, ()),  # the base, and four arms on five seeds
        ("mistral_7b", 21, ()),
    ]
    assert plan.whole.time.unknown == 0
    assert sum(kind.runs for kind in plan.kinds) == 42
    text = to_markdown(page(plan))
    assert "table5, 40 runs on suite local" in text


@pytest.mark.slow
def test_table5_is_planned_at_the_papers_scale(tmp_path: Path) -> None:
    plan = table5(tmp_path, "paper")
    assert all(kind.layout.fits for kind in plan.kinds)
    (found,) = plan.evaluations
    assert found.runs == 24
    assert found.sequences == 14_042 * 4 + 9_316 * 5 + 1_267 * 2
    mistral = max(kind.works[0].forward for kind in plan.kinds)
    assert mistral == pytest.approx(2 * 7.2e9, rel=0.05)
    assert found.flops is not None
    assert found.flops > 12 * mistral * LENGTH * found.sequences
