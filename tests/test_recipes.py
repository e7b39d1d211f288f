"""Every code block of docs/optimizers.md does what a loop by hand does with the paper's algorithm in float64."""

from __future__ import annotations

import copy
import runpy
from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.testing import assert_close

from cwd.optim import AdamW, Lion
from tests.optim_helpers import EXACT, normal
from tests.recipe_helpers import Reference, batches, block, blocks, loader, network, run_block, weights

TOLERANCE = {"rtol": 0, "atol": 1e-11}  # models in float64, over a few steps
BLOCKS = {
    "The optimizers": 1,
    "Parameter groups": 1,
    "Any other optimizer": 1,
    "Checkpoints": 1,  # tests/test_optim_roundtrips.py
    "A plain loop": 1,
    "Hugging Face Trainer": 2,
    "accelerate": 1,
    "timm": 2,
    "Lightning": 1,
    "Schedule-Free": 1,
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """A folder for what a recipe writes, and float64 for its model."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_hand(model, data, optimizer, schedule=None, clip=None, loss=cross_entropy) -> list[torch.Tensor]:
    """The weights after one step on each batch."""
    for inputs, targets in data:
        loss(model(inputs), targets).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad()
    return weights(model)


def test_every_block_of_the_page_is_run_here():
    assert Counter(heading for heading, _ in blocks()) == BLOCKS


def test_the_quick_start():
    torch.manual_seed(1)
    model = run_block("The optimizers")["model"]
    torch.manual_seed(1)
    expected = torch.nn.Linear(8, 1)
    data = [(torch.randn(32, 8), None) for _ in range(10)]
    hand = by_hand(expected, data, Reference(expected.parameters()), loss=lambda y, _: y.square().mean())
    assert_close(weights(model), hand, **TOLERANCE)


def small_model() -> torch.nn.Module:
    torch.manual_seed(5)
    parts = {"norm": torch.nn.LayerNorm(16), "up": torch.nn.Linear(16, 64), "down": torch.nn.Linear(64, 16)}
    layers = torch.nn.ModuleList(torch.nn.ModuleDict(copy.deepcopy(parts)) for _ in range(2))
    ends = {
        "embed": torch.nn.Embedding(64, 16),
        "norm": torch.nn.LayerNorm(16),
        "head": torch.nn.Linear(16, 64, bias=False),
    }
    return torch.nn.ModuleDict({"embed": ends["embed"], "layers": layers, "norm": ends["norm"], "head": ends["head"]})


def test_the_groups_are_those_that_the_page_prints(capsys):
    model, expected = small_model(), small_model()
    optimizer = run_block("Parameter groups", model=model)["optimizer"]
    assert capsys.readouterr().out == block("Parameter groups", language="text")
    named, muon = dict(expected.named_parameters()), {"momentum": 0.95, "nesterov": True}
    ends = [named.pop("embed.weight"), named.pop("head.weight")]
    hidden = [named.pop(f"layers.{i}.{part}.weight") for i in range(2) for part in ("up", "down")]
    groups = [{"params": ends, "lr": 5e-4}, {"params": list(named.values()), "mode": "none"}]
    reference = Reference([*groups, {"params": hidden, "rule": "muon", "hyper": muon}])
    for step in range(3):
        for one, trained in ((model, optimizer), (expected, reference)):
            for i, p in enumerate(one.parameters()):
                p.grad = normal(*p.shape, seed=100 * step + i)
            trained.step()
    assert_close(weights(model), weights(expected), **TOLERANCE)


def decay_by_hand(model, bare, data, lr: float, weight_decay: float) -> list[torch.Tensor]:
    """What the wrapper does: a bare optimizer's step, then the decay where that step and x agree in sign."""
    for inputs, targets in data:
        cross_entropy(model(inputs), targets).backward()
        before = weights(model)
        bare.step()
        with torch.no_grad():
            for p, x in zip(model.parameters(), before, strict=True):
                u = x - p
                opposed = ((u > 0) & (x < 0)) | ((u < 0) & (x > 0))
                p.sub_(lr * weight_decay * x.masked_fill(opposed, 0.0))
        bare.zero_grad()
    return weights(model)


def test_a_wrapped_nadam():
    model, expected = network(), network()
    optimizer = run_block("Any other optimizer", model=model)["optimizer"]
    hand = decay_by_hand(expected, torch.optim.NAdam(expected.parameters(), lr=1e-3), batches(8), 1e-3, 0.1)
    assert_close(by_hand(model, batches(8), optimizer), hand, **TOLERANCE)


def test_schedule_free_in_the_wrapper():
    schedulefree = pytest.importorskip("schedulefree", reason="needs schedulefree: pip install -e '.[recipes]'")
    model, expected = network(), network()
    run_block("Schedule-Free", model=model, batches=batches(8))
    bare = schedulefree.AdamWScheduleFree(expected.parameters(), lr=1e-3)
    bare.train()
    at_gradients = decay_by_hand(expected, bare, batches(8), 1e-3, 0.1)
    bare.eval()
    assert_close(weights(model), weights(expected), **TOLERANCE)
    assert any(not torch.equal(p, y) for p, y in zip(weights(model), at_gradients, strict=True))


class Cut(list):
    """Batches whose reading stops the run at a number, as an interrupt would."""

    def __init__(self, items, at):
        super().__init__(items)
        self.at = at

    def __getitem__(self, number):
        if number == self.at:
            raise KeyboardInterrupt
        return super().__getitem__(number)


def test_a_plain_loop_and_its_resumption(tmp_path):
    train, data = run_block("A plain loop")["train"], batches(10)
    expected, whole, stopped, resumed = (network() for _ in range(4))
    train(whole, data, tmp_path / "whole.pt")
    reference = Reference(expected.parameters())
    hand = by_hand(expected, data, reference, CosineAnnealingLR(reference, T_max=10), clip=1.0)
    assert_close(weights(whole), hand, **TOLERANCE)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, Cut(data, at=8), tmp_path / "state.pt", every=3)
    train(resumed, Cut(data, at=5), tmp_path / "state.pt", every=3)  # which goes on from the seventh
    assert_close(weights(resumed), weights(whole), **EXACT)


class Noted(list):
    """A dataset that notes which items were asked for: the Trainer shuffles."""

    def __init__(self, items):
        super().__init__(items)
        self.asked: list[int] = []

    def __getitem__(self, number):
        self.asked.append(number)
        return super().__getitem__(number)


def llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, max_position_embeddings=16, **sizes)).double()


def sequences() -> Noted:
    tokens = torch.randint(24, (32, 10), generator=torch.Generator().manual_seed(2))
    return Noted({"input_ids": row, "labels": row} for row in tokens)


def trained_by_hand(asked: list[int], groups_of) -> list[torch.Tensor]:
    """Six steps of eight sequences with the Trainer's clipping and its cosine to zero."""
    model, rows = llama(), sequences()
    optimizer = Reference(groups_of(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 0.5 * (1 + torch.tensor(t * torch.pi / 6).cos().item())
    )
    for step in range(6):
        tokens = torch.stack([rows[i]["input_ids"] for i in asked[8 * step : 8 * step + 8]])
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return weights(model)


def test_hugging_face_trainer_with_its_own_groups_and_its_resumption():
    dataset = sequences()
    run = run_block("Hugging Face Trainer", model=llama(), dataset=dataset)

    def groups(model):
        norms = [p for name, p in model.named_parameters() if "norm" in name]
        return [{"params": [p for p in model.parameters() if p.ndim == 2]}, {"params": norms, "weight_decay": 0.0}]

    assert isinstance(run["trainer"].optimizer.optimizer, AdamW)
    assert_close(weights(run["model"]), trained_by_hand(dataset.asked, groups), **TOLERANCE)
    again = run["Trainer"](
        model=llama(),
        args=run["arguments"],
        train_dataset=sequences(),
        optimizer_cls_and_kwargs=(AdamW, {"lr": 1e-3, "betas": (0.9, 0.95)}),
    )
    again.train(resume_from_checkpoint="output/checkpoint-3")
    assert_close(weights(again.model), weights(run["model"]), **EXACT)


def test_hugging_face_trainer_with_groups_of_ones_own():
    dataset = sequences()
    run = run_block("Hugging Face Trainer", 1, model=llama(), dataset=dataset)

    def groups(model):
        ends = [model.model.embed_tokens.weight, model.lm_head.weight]
        norms = [p for name, p in model.named_parameters() if "norm" in name]
        hidden = [p for name, p in model.named_parameters() if "proj" in name]
        muon = {"params": hidden, "rule": "muon", "hyper": {"momentum": 0.95, "nesterov": True}}
        return [{"params": ends}, {"params": norms, "mode": "none"}, muon]

    assert_close(weights(run["model"]), trained_by_hand(dataset.asked, groups), **TOLERANCE)


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps one state a process, and refuses another precision."""
    from accelerate.state import AcceleratorState, GradientState

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


def test_accelerate_with_mixed_precision_and_accumulation(fresh_accelerator, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.set_default_dtype(torch.float32)  # which autocast takes
    model, expected, again = network(), network(), network()
    run = run_block("accelerate", model=model, loader=loader(8))
    reference = Reference(expected.parameters())
    schedule = CosineAnnealingLR(reference, T_max=4)
    for i, (inputs, targets) in enumerate(batches(8)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(expected(inputs), targets)
        (loss / 2).backward()
        if i % 2:
            torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
            reference.step()
            schedule.step()
            reference.zero_grad()
    # float32 steps of values below 1, four of them; lr * u = 1e-3 a step, so a missed or doubled one would be seen
    assert_close(weights(model), weights(expected), rtol=0, atol=4 * 2**-23)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    accelerator = run["Accelerator"](mixed_precision="bf16", gradient_accumulation_steps=2)
    optimizer = AdamW(again.parameters(), lr=9.0, weight_decay=9.0)
    accelerator.prepare(again, optimizer, CosineAnnealingLR(optimizer, T_max=4))
    accelerator.load_state("checkpoint")
    assert_close(weights(again), weights(model), **EXACT)
    assert optimizer.param_groups[0]["lr"] == run["optimizer"].param_groups[0]["lr"]
    assert_close(optimizer.state_dict()["state"], run["optimizer"].state_dict()["state"], **EXACT)


def test_timm_in_a_loop():
    timm = pytest.importorskip("timm", reason="needs timm: pip install -e '.[recipes]'")
    data = [(normal(2, 3, 32, 32, seed=i), torch.tensor([i, 3])) for i in range(2)]
    torch.manual_seed(4)
    model = run_block("timm", loader=data)["model"]
    torch.manual_seed(4)
    expected = timm.create_model("test_convnext", num_classes=10)
    flat = [p for name, p in expected.named_parameters() if p.ndim <= 1 or name.endswith(".bias")]
    rest = [p for name, p in expected.named_parameters() if not (p.ndim <= 1 or name.endswith(".bias"))]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.05}]
    reference = Reference(groups, hyper={"betas": (0.9, 0.999), "eps": 1e-8})
    for epoch in range(4):
        rate = 1e-5 if epoch == 0 else 0.5e-3 * (1 + torch.tensor(epoch * torch.pi / 4).cos().item())
        for group in reference.param_groups:
            group["lr"] = rate
        by_hand(expected, data, reference)
    assert_close(weights(model), weights(expected), **TOLERANCE)


# What timm's train.py does between its command line and its optimizer.
TRAIN_PY = """
import argparse
import torch
from timm import utils
from timm.optim import create_optimizer_v2, optimizer_kwargs

parser = argparse.ArgumentParser()
parser.add_argument("--opt", default="sgd")
parser.add_argument("--lr", type=float)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--weight-decay", type=float, default=2e-5)
parser.add_argument("--opt-eps", type=float)
parser.add_argument("--opt-betas", type=float, nargs="+")
parser.add_argument("--opt-kwargs", nargs="*", default={}, action=utils.ParseKwargs)
args = parser.parse_args()
optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
"""


@pytest.mark.parametrize(("name", "cls", "betas"), [("cwdadamw", AdamW, (0.9, 0.999)), ("cwdlion", Lion, (0.9, 0.99))])
def test_timms_train_py_takes_the_names_that_the_script_registers(name, cls, betas, tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="needs timm: pip install -e '.[recipes]'")
    from timm.optim._optim_factory import default_registry

    monkeypatch.setattr(default_registry, "_optimizers", dict(default_registry._optimizers))
    (tmp_path / "train.py").write_text(TRAIN_PY)
    command = ["train_cwd.py", "--opt", name, "--lr", "0.002", "--weight-decay", "0.05", "--opt-kwargs", "decay=scaled"]
    monkeypatch.setattr("sys.argv", [*command, "seed=3", "--opt-betas", *map(str, betas)])
    model, seen, run_path = network(), [], runpy.run_path
    monkeypatch.setattr(
        runpy, "run_path", lambda path, run_name: seen.append((run_name, run_path(path, {"model": model}, run_name)))
    )
    run_block("timm", 1)
    [(run_name, after)] = seen
    optimizer = after["optimizer"]
    assert run_name == "__main__"
    assert type(optimizer) is cls
    assert optimizer.seed == 3
    biases, matrices = optimizer.param_groups
    assert [p.ndim for p in biases["params"]] == [1, 1]
    assert [p.ndim for p in matrices["params"]] == [2, 2]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    for group in optimizer.param_groups:
        assert (group["lr"], tuple(group["betas"]), group["decay"]) == (0.002, betas, "scaled")


def test_lightning_and_its_resumption():
    lightning = pytest.importorskip("lightning", reason="needs lightning: pip install -e '.[recipes]'")
    model, expected, again = network(), network(), network()
    run = run_block("Lightning", model=model, loader=loader(4))
    reference = Reference(expected.parameters())
    hand = by_hand(expected, 2 * batches(4), reference, CosineAnnealingLR(reference, T_max=8), clip=1.0)
    assert_close(weights(model), hand, **TOLERANCE)
    quiet = {"logger": False, "enable_progress_bar": False, "gradient_clip_val": 1.0}
    first = lightning.Trainer(max_epochs=1, **quiet)
    first.fit(run["Classifier"](network(), 8), loader(4))
    half = first.checkpoint_callback.best_model_path
    lightning.Trainer(max_epochs=2, **quiet).fit(run["Classifier"](again, 8), loader(4), ckpt_path=half)
    assert_close(weights(again), weights(model), **EXACT)
