"""The contract: every rule under every mode, on every path, in every dtype, is the reference to rounding."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cwd.optim import MODES, RULES, RuleOptimizer, eager
from cwd.optim.draws import uniform
from tests import optim_reference as reference
from tests.optim_helpers import (
    DOUBLE,
    EXACT,
    HYPER,
    PATHS,
    UNIT,
    each_elementwise_rule,
    each_mode,
    each_rule,
    gradient_of,
    make,
    normal,
    numpy64,
    parameters,
    set_gradients,
    train,
    values,
)

ELEMENTWISE = [mode for mode in MODES if MODES[mode].sums is None]
LOW = [torch.bfloat16, torch.float16]
DTYPES = {"eager": [torch.float64, torch.float32, *LOW], "flat": [torch.float64, torch.float32, *LOW]}
COMPILED_DTYPES = [torch.float64, torch.float32, torch.bfloat16]
QUICK = [  # compiling takes seconds
    ("adamw", "cautious", torch.float32),
    ("lion", "cautious", torch.bfloat16),
    ("sgd", "inner_product", torch.float64),
]
SEED, LR, LAMBDA = 5, 0.25, 0.7


def combinations() -> Iterator[Any]:
    for path in PATHS:
        for rule in RULES:
            for mode in MODES:
                possible = rule != "muon" and (mode in ELEMENTWISE or "flat" not in path)
                if possible or path == "eager":
                    for dtype in DTYPES.get(path, COMPILED_DTYPES):
                        quick = "compiled" not in path or (rule, mode, dtype) in QUICK
                        yield pytest.param(
                            path,
                            rule,
                            mode,
                            dtype,
                            marks=() if quick else pytest.mark.slow,
                            id="-".join([path, rule, mode, str(dtype).removeprefix("torch.")]),
                        )


def tensors(rule: str, dtype: torch.dtype, path: str) -> list[torch.nn.Parameter]:
    """Of many sizes: none, one element, a scalar, several pieces, enough small ones for a whole graph and a rest."""
    if rule == "muon":
        shapes = [(0, 3), (6, 4), (4, 6), (5, 5), (1, 9), (9, 1), (40, 31)]
    else:
        shapes = [(0,), (1,), (), (7,), (2, 3, 4), (64, 33), (129,), *[(i + 2, 3) for i in range(14)]]
    params = [0.3 * normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    for x in params:
        if x.numel() > 3:
            x.view(-1)[1:3] = torch.tensor([0.0, -0.0])
    if "flat" not in path:  # there, one tensor that is not contiguous keeps its group from being flat
        params += [0.3 * normal(5, 7, seed=99).mT]
    params = [x.to(dtype) for x in params]
    if "flat" not in path:
        params.append((0.3 * normal(6, 8, seed=98)).to(dtype)[:, ::2])
    return [torch.nn.Parameter(x) for x in params]


def gradient(p: torch.Tensor, index: int, step: int) -> torch.Tensor:
    """With zeros of both signs, and for every third tensor not contiguous."""
    g = normal(*p.shape, seed=1000 * step + index).to(p.dtype)
    if p.numel() > 3:
        g.view(-1)[0], g.view(-1)[3] = 0.0, -0.0
    return g.mT.contiguous().mT if g.ndim == 2 and index % 3 == 0 else g


def absent(index: int, step: int) -> bool:
    return step == 3 and index % 4 == 1


def state_before(rule: str, state) -> dict:
    """The paper's state from the optimizer's. Muon: the paper's sum from the exponential average."""
    if not state:
        return {"m": 0.0, "v": 0.0, "t": 0}
    name = {"muon": "momentum_buffer", "sgd": "momentum_buffer"}.get(rule, "exp_avg")
    m = numpy64(state[name]).copy() / (1 - HYPER["muon"]["momentum"] if rule == "muon" else 1)
    v = numpy64(state["exp_avg_sq"]).copy() if rule == "adamw" else 0.0
    return {"m": m, "v": v, "t": int(state["step"])}


def check(rule: str, mode: str, p, x, g, before: dict, after: dict, draws) -> None:
    """One tensor's step: parameter and state within the rounding errors of the precision of the computation."""
    # float64's reference makes the same errors
    unit = 2.0**-52 if p.dtype == torch.float64 else UNIT
    hyper, state = HYPER[rule], dict(before)
    settings = {"lr": LR, "weight_decay": LAMBDA, "hyper": hyper}
    expected, u, _ = reference.step(rule, mode, x, g, state, **settings, draws=draws)
    bound = unit * reference.rounding_error(rule, mode, x, g, before, expected, u, **settings)
    low, high = (torch.as_tensor(v).to(p.dtype) for v in (expected - bound, expected + bound))
    assert ((low <= p) & (p <= high)).all()  # so a low precision is rounded to once
    for name in {"m", "v"} & set(state) if rule == "adamw" else {"m"}:
        bound = unit * reference.state_error(name, rule, g, before, hyper)
        assert np.all(np.abs(after[name] - state[name]) <= bound), name


@pytest.mark.parametrize(("path", "rule", "mode", "dtype"), list(combinations()))
def test_each_step_is_the_reference_to_rounding(path, rule, mode, dtype, monkeypatch):
    if "compiled" in path and shutil.which("g++") is None:
        pytest.skip("compiling for the CPU needs g++")
    for name, size in {"PIECE": 512, "SMALL": 64, "TOGETHER": 200}.items():  # all paths at sizes that are quick
        monkeypatch.setattr(eager, name, size)
    params = tensors(rule, dtype, path)
    optimizer = make(rule, params, mode, lr=LR, weight_decay=LAMBDA, seed=SEED, **PATHS[path])
    for step in range(1, 5):
        before = [(numpy64(p).copy(), state_before(rule, optimizer.state.get(p))) for p in params]
        for i, p in enumerate(params):
            p.grad = None if absent(i, step) else gradient(p, i, step)
        given = [None if p.grad is None else p.grad.clone() for p in params]
        optimizer.step()
        took(path, optimizer, complete=step != 3)
        for i, (p, (x, state), g) in enumerate(zip(params, before, given, strict=True)):
            after = state_before(rule, optimizer.state.get(p))
            if g is None:
                assert np.array_equal(numpy64(p), x)
                assert after["t"] == state["t"]
            elif p.numel() > 0:
                assert torch.equal(p.grad, g)
                assert after["t"] == state["t"] + 1
                draws = uniform(p.shape, (SEED, after["t"], i)).numpy()
                check(rule, mode, p.detach(), x, numpy64(g), state, after, draws)
            wide = torch.float32 if dtype in LOW else dtype
            assert {v.dtype for k, v in optimizer.state.get(p, {}).items() if k != "step"} <= {wide}


def took(path: str, optimizer: RuleOptimizer, complete: bool) -> None:
    """Whether the step went the way that is asked for: else another one would be tested twice."""
    sets = optimizer._plan.sets
    if "flat" in path and complete:
        assert all(one.flat is not None for one in sets)
        assert all((one.flat_chunk is not None) == ("compiled" in path) for one in sets)
    else:
        graphs = {len(chunk.slots) for one in sets for chunk in one.chunks}
        drawing = optimizer.param_groups[0]["decay"] == "random"
        assert graphs == (({1} if drawing else {1, 10}) if "compiled" in path else set())
        assert any(one.alone for one in sets) or path != "eager"


# (u, x): zeros of both signs, products that underflow or overflow in float32
SIGNS = [(u, x) for u in (2.0, -2.0, 0.0, -0.0) for x in (4.0, -4.0, 0.0, -0.0)]
SIGNS += [
    (1e-30, -1e-30),
    (-1e-30, 1e-30),
    (1e-30, 1e-30),
    (1e30, -1e30),
    (1e30, 1e30),
    (1e-30, -1e30),
    (3e-30, -1e-30),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["cautious", "opposite", "gradient"])
@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.slow if "compiled" in p else ()) for p in PATHS])
def test_every_path_reads_the_signs_of_zeros_and_of_tiny_numbers(path, mode, dtype):
    us, xs = (torch.tensor(column, dtype=dtype) for column in zip(*SIGNS, strict=True))
    params = [torch.nn.Parameter(xs.clone()) for _ in range(2)]
    for p in params:
        p.grad = us.clone()
    make("sgd", params, mode, lr=0.5, weight_decay=0.5, momentum=0.0, **PATHS[path]).step()
    u, x = numpy64(us), numpy64(xs)
    mask = np.array([not (a > 0 > b or a < 0 < b) for a, b in SIGNS])
    expected = x - 0.5 * (u + 0.5 * (mask if mode != "opposite" else ~mask) * x)
    for p in params:
        assert np.all(np.abs(numpy64(p) - expected) <= 4 * UNIT * (np.abs(x) + np.abs(u)))


@each_mode
@each_rule
def test_maximize_is_minimising_with_negated_gradients(rule, mode):
    ascent, descent = parameters(rule), parameters(rule)
    up, down = make(rule, ascent, mode, maximize=True), make(rule, descent, mode)
    for step in range(1, 6):
        set_gradients(ascent, step)
        set_gradients(descent, step, sign=-1.0)
        up.step()
        down.step()
    assert_close(values(ascent), values(descent), **EXACT)


@each_rule
def test_a_step_does_not_change_the_gradient(rule):
    params = parameters(rule)
    for maximize in (False, True):
        set_gradients(params, 1)
        make(rule, params, maximize=maximize).step()
        for i, p in enumerate(params):
            assert torch.equal(p.grad, gradient_of(p, i, 1))


@each_rule
def test_a_parameter_without_gradient_and_its_state_stay_untouched(rule):
    params = parameters(rule)
    optimizer = make(rule, params)
    train(optimizer, params, [1, 2])
    before, state = values(params), copy.deepcopy(dict(optimizer.state[params[1]]))
    set_gradients(params, 3)
    params[1].grad = None
    optimizer.step()
    assert_close(dict(optimizer.state[params[1]]), state, **EXACT)
    assert torch.equal(params[1], before[1])
    assert not torch.equal(params[0], before[0])


def test_a_parameter_that_never_had_a_gradient_has_no_state():
    params = parameters("adamw")
    optimizer = make("adamw", params)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert set(optimizer.state) == {params[0]}


@each_rule
def test_empty_groups_and_empty_tensors_are_passed_over(rule):
    params, alone = parameters(rule), parameters(rule)
    hollow = torch.nn.Parameter(torch.empty(0, 3, dtype=torch.float64))
    optimizer = make(rule, [{"params": []}, {"params": [*params, hollow]}])
    hollow.grad = torch.empty(0, 3, dtype=torch.float64)
    assert_close(train(optimizer, params, range(1, 4)), train(make(rule, alone), alone, range(1, 4)), **EXACT)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4), (1, 2, 1, 3)], ids=str)
@each_mode
@each_elementwise_rule
def test_elementwise_rules_take_any_shape_as_they_take_a_vector(rule, mode, shape):
    shaped = torch.nn.Parameter(normal(*shape))
    flat = torch.nn.Parameter(normal(*shape).reshape(-1))
    left, right = make(rule, [shaped], mode), make(rule, [flat], mode)
    for step in range(3):
        shaped.grad = normal(*shape, seed=50 + step)
        flat.grad = shaped.grad.reshape(-1).clone()
        left.step()
        right.step()
    assert shaped.shape == shape
    assert_close(shaped.detach().reshape(-1), flat.detach(), **EXACT)


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "every second column": lambda x: torch.stack([x, torch.full_like(x, 9.0)], -1).flatten(-2)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_mode
@each_rule
def test_memory_layout_does_not_change_the_step(rule, mode, layout):
    x = normal(6, 4)
    plain, strided = torch.nn.Parameter(x.clone()), torch.nn.Parameter(LAYOUTS[layout](x))
    assert not strided.is_contiguous()
    left, right = make(rule, [plain], mode), make(rule, [strided], mode)
    for step in range(1, 6):
        plain.grad = gradient_of(plain, 0, step)
        strided.grad = LAYOUTS[layout](plain.grad)
        left.step()
        right.step()
    # Muon's matrix products, and norms, may sum in another order
    assert_close(strided.detach(), plain.detach(), **(DOUBLE if rule == "muon" or mode == "spd" else EXACT))
