"""The compiled step: two compilations a rule and mode, no recompilation after that, and who is compiled."""

from __future__ import annotations

import copy
import shutil
from functools import cache

import pytest
import torch
import torch.fx.experimental._config as symbolic_shapes
from torch.fx.experimental.proxy_tensor import make_fx

from cwd.optim import MODES, AdamW, Lion, Observation, RuleOptimizer, compiled

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")

# Two dozen tensors of many sizes: whole chunks, a rest, one element, a scalar, a matrix, none.
SHAPES = [(7,), (3, 5), (64, 33), (1,), (), (0,), (129,), (2, 3, 4), *[(i + 2, 3) for i in range(16)]]
RULES = {"adamw": {}, "lion": {"betas": (0.9, 0.99)}, "sgd": {"momentum": 0.9}}


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def make(params: list[torch.nn.Parameter], rule: str, mode: str, compile: bool, **options) -> RuleOptimizer:
    defaults = {"rule": rule, "lr": 0.01, "weight_decay": 0.3, "decay": mode, **RULES[rule], **options}
    return RuleOptimizer(params, defaults, seed=3, compile=compile)


def train(optimizer: RuleOptimizer, params: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()


def test_a_schedule_of_rates_and_lambdas_compiles_nothing_again():
    params = parameters(torch.float32)
    optimizer = make(params, "adamw", "cautious", compile=True, decay_schedule="cosine", decay_steps=150)
    train(optimizer, params, range(2))
    before = compiled.compilations
    for step in range(2, 200):
        optimizer.param_groups[0]["weight_decay"] = 0.3 / step
        train(optimizer, params, range(step, step + 1))
    assert compiled.compilations == before


def test_two_compilations_serve_tensors_of_all_sizes():
    before = compiled.compilations
    for shapes in (SHAPES, [(2 + 7 * i, 3) for i in range(23)]):
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
        train(make(params, "lion", "gradient", compile=True), params, range(2))
    assert compiled.compilations == before + 2


def test_an_observer_sees_the_same_step_and_changes_nothing():
    plain, watched = parameters(torch.float32), parameters(torch.float32)
    train(make(plain, "adamw", "cautious", compile=True), plain, range(3))
    optimizer, seen = make(watched, "adamw", "cautious", compile=True), []
    optimizer.observer = lambda o: seen.append(Observation(o.name, o.x.clone(), o.u.clone(), o.g.clone()))
    train(optimizer, watched, range(3))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert len(seen) == 3 * sum(p.numel() > 0 for p in watched)
    assert {o.x.shape for o in seen} == {torch.Size(shape) for shape in SHAPES if shape != (0,)}


def test_a_state_dict_moves_between_compiled_and_eager():
    params = parameters(torch.float32)
    optimizer = make(params, "adamw", "cautious", compile=True)
    train(optimizer, params, range(3))
    others = copy.deepcopy(params)
    eager = make(others, "adamw", "cautious", compile=False)
    eager.load_state_dict(optimizer.state_dict())
    train(optimizer, params, range(3, 6))
    train(eager, others, range(3, 6))
    for a, b in zip(params, others, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


def test_what_cannot_be_compiled_is_stepped_all_the_same():
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    eager, fused = ([torch.nn.Parameter(base.clone().t()), torch.nn.Parameter(torch.ones(1))] for _ in range(2))
    assert not eager[0].is_contiguous()
    train(make(eager, "adamw", "cautious", compile=False), eager, range(3))
    train(make(fused, "adamw", "cautious", compile=True), fused, range(3))
    assert all(torch.equal(a, b) for a, b in zip(eager, fused, strict=True))


@pytest.mark.parametrize(("elements", "expected"), [(100, False), (2**21, True)])
def test_large_models_compile_by_themselves(elements, expected, monkeypatch):
    calls = []
    monkeypatch.setattr(compiled.Chunk, "step", lambda chunk, *args, **kwargs: calls.append(len(chunk.slots)) or [])
    for cls in (AdamW, Lion):
        p = torch.nn.Parameter(torch.zeros(elements))
        p.grad = torch.zeros_like(p)
        cls([p]).step()
        cls([p], compile=False).step()
    assert calls == [1, 1] * expected


@pytest.mark.parametrize(("mode", "stochastic"), [(mode, False) for mode in MODES] + [("none", True), ("random", True)])
def test_a_graph_holds_for_tensors_of_all_sizes(mode, stochastic, monkeypatch):
    """No size is taken for a constant: the graph itself, not yet compiled, steps tensors of other sizes."""

    def trace(function, examples):
        with torch.no_grad(), symbolic_shapes.patch(use_duck_shape=False):
            return make_fx(function, tracing_mode="symbolic")(examples)

    monkeypatch.setattr(compiled, "_compiled", cache(compiled._compiled.__wrapped__))
    monkeypatch.setattr(compiled, "_compile", trace)
    monkeypatch.setattr(compiled, "CHUNK", 2)
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(size).to(torch.bfloat16)) for size in (7, 300, 2, 90)]
        optimizer = make(params, "sgd", mode, compile, stochastic_rounding=stochastic)
        train(optimizer, params, range(2))
        results.append([p.detach() for p in params])
    torch.testing.assert_close(*results, rtol=0, atol=0)
