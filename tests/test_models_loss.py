"""The loss by chunks of tokens against the plain one: values, gradients, precision, and what is never in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cwd.benchmarks import loss as benchmark
from cwd.models import build, loss
from cwd.models.loss import linear_cross_entropy
from tests import loss_worker
from tests.conftest import ROOT

TOKENS, WIDTH, CLASSES = (3, 7), 5, 11
FAMILIES = {
    "simply": {"hidden_size": 16, "num_attention_heads": 2, "head_dim": 8, "logit_softcap": 2.0},
    "olmo": {"hidden_size": 16, "num_attention_heads": 2},
    "qwen3": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 32,
    },
    "gpt2": {"hidden_size": 16, "num_attention_heads": 2},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens at once: 21 tokens are six chunks, the last of one token."""
    monkeypatch.setattr(loss, "CHUNK", 4 * CLASSES)


def problem(bias: bool, dtype: torch.dtype) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = nn.Linear(WIDTH, CLASSES, bias=bias, dtype=dtype)
    for parameter in head.parameters():
        parameter.data.copy_(3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return hidden, head, torch.randint(CLASSES, TOKENS, generator=generator)


def plain(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, ...]:
    """Loss, correct, and gradients by torch, all logits at once, in float64."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in (hidden, *head.parameters())]
    logits = F.linear(*inputs)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    value = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return value, (logits.argmax(-1) == targets).sum(), *torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("cap", [None, 2.0], ids=["no cap", "cap"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_losses_and_gradients_are_those_of_all_logits_at_once(bias, cap, dtype):
    hidden, head, targets = problem(bias, dtype)
    expected = plain(hidden, head, targets, cap)
    value, correct = linear_cross_entropy(hidden, head, targets, cap)
    (value / 3).backward()
    small = 1e-12 if dtype == torch.float64 else 1e-6
    assert (value.dtype, correct.item()) == (torch.float64, expected[1].item())
    assert_close(value, expected[0], rtol=small, atol=0)
    for tensor, want in zip((hidden, *head.parameters()), expected[2:], strict=True):
        assert tensor.grad.dtype == dtype
        assert_close(3 * tensor.grad.double(), want, rtol=0, atol=small * want.abs().max().item())
    with torch.no_grad():
        assert [one.item() for one in linear_cross_entropy(hidden, head, targets, cap)] == [value.item(), correct]


def test_gradients_flow_into_the_hidden_states_alone_where_the_head_is_frozen():
    hidden, head, targets = problem(True, torch.float64)
    expected = plain(hidden, head, targets, None)
    head.requires_grad_(False)
    linear_cross_entropy(hidden, head, targets)[0].backward()
    assert head.weight.grad is None
    assert_close(hidden.grad, expected[2])


@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16], ids=str)
def test_in_bfloat16_gradients_have_their_masters_dtype_and_are_as_close_as_plain_ones(masters):
    hidden, head, targets = problem(True, masters)
    exact = plain(hidden, head, targets, 2.0)[2:]
    errors = []
    for way in ("plain", "chunks"):
        for tensor in (hidden, *head.parameters()):
            tensor.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if way == "chunks":
                value = linear_cross_entropy(hidden, head, targets, 2.0)[0]
            else:
                logits = (2.0 * torch.tanh(head(hidden) / 2.0)).float()
                value = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        value.backward()
        gradients = [tensor.grad for tensor in (hidden, *head.parameters())]
        assert {gradient.dtype for gradient in gradients} == {masters}
        errors.append([(g - want).norm().item() / want.norm().item() for g, want in zip(gradients, exact, strict=True)])
    for ours, theirs in zip(errors[1], errors[0], strict=True):
        assert 0 < ours < max(1.5 * theirs, 2**-8)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    hidden, head, targets = problem(True, torch.float32)
    with Largest() as seen:
        linear_cross_entropy(hidden, head, targets, 2.0)[0].backward()
        with torch.no_grad():
            linear_cross_entropy(hidden, head, targets, 2.0)
    largest_tensor = max(hidden.numel(), head.weight.numel())
    assert seen.elements == max(4 * CLASSES, largest_tensor) < 21 * CLASSES
    with Largest() as seen:
        F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten())
    assert seen.elements == 21 * CLASSES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_losses_of_its_own_logits(family):
    torch.manual_seed(0)
    model = build(family, vocab_size=CLASSES, seq_len=7, num_hidden_layers=2, **FAMILIES[family])
    tokens = torch.randint(CLASSES, (2, *TOKENS))
    expected = F.cross_entropy(model(input_ids=tokens[0]).logits.flatten(0, 1), tokens[1].flatten(), reduction="sum")
    want = torch.autograd.grad(expected, list(model.parameters()))
    value, correct = model(input_ids=tokens[0], targets=tokens[1], use_cache=False)
    got = torch.autograd.grad(value, list(model.parameters()))
    assert_close(value.float(), expected)
    assert correct == (model(input_ids=tokens[0]).logits.argmax(-1) == tokens[1]).sum()
    for (name, _), a, b in zip(model.named_parameters(), got, want, strict=True):
        assert_close(a, b, rtol=0, atol=2e-5 * b.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}")


def test_compiled_losses_and_gradients_are_the_eager_ones():
    torch.manual_seed(0)
    model = build("simply", vocab_size=CLASSES, seq_len=7, num_hidden_layers=1, **FAMILIES["simply"])
    tokens, results = torch.randint(CLASSES, (2, *TOKENS)), []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):  # traced; no C++ compiler
        value, correct = forward(input_ids=tokens[0], targets=tokens[1], use_cache=False)
        results.append((value, correct, *torch.autograd.grad(value, list(model.parameters()))))
    for eager, compiled in zip(*results, strict=True):
        assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_two_processes_get_the_gradients_of_one(tmp_path):
    """The loss is taken inside the forward, where DDP and FSDP2 see the head's weights."""
    workers = [
        subprocess.Popen([sys.executable, "-m", "tests.loss_worker", str(rank), str(tmp_path)], cwd=ROOT)
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    model, (inputs, targets) = loss_worker.problem()
    F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten()).backward()
    for way, found in torch.load(tmp_path / "gradients.pt", weights_only=True).items():
        for name, parameter in model.named_parameters():
            size = parameter.grad.abs().max().item()
            assert_close(
                found[name], parameter.grad, rtol=0, atol=1e-5 * size, msg=lambda m, n=name, w=way: f"{w} {n}: {m}"
            )


def test_the_benchmark_compares_both_ways(tmp_path, monkeypatch):
    """4,096 classes, 512 tokens, 64 at once."""
    monkeypatch.setattr(loss, "CHUNK", 64 * 4096)
    sizes = ["batch=2", "length=256", "classes=4096", "width=8", "threads=1"]
    benchmark.main([*sizes, f"markdown={tmp_path / 'a.md'}"])
    rows = [line.split("|")[1:-1] for line in (tmp_path / "a.md").read_text().splitlines() if line.startswith("| ")]
    peaks = {row[0].strip(): float(row[2]) for row in rows[2:]}
    assert peaks["all logits at once"] > 3
    assert peaks["by chunks"] < peaks["all logits at once"] / 4
