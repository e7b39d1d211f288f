"""Options of the native optimizers, each against its own formula in float64, on every path."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import MODES, SGD, AdamW, eager
from tests import optim_reference as reference
from tests.optim_helpers import (
    DOUBLE,
    EXACT,
    HYPER,
    PATHS,
    each_mode,
    gradient_of,
    make,
    normal,
    numpy64,
    set_gradients,
    train,
    values,
)

SHAPES = [(7,), (3, 5), (6, 4)]
QUICK_PATHS = ["eager", "flat"]
SLOW_PATHS = [pytest.param(path, marks=pytest.mark.slow) for path in ("compiled", "flat compiled")]
each_path = pytest.mark.parametrize("path", QUICK_PATHS + SLOW_PATHS)


def tensors(dtype=torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(normal(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(SHAPES)]


def follow(optimizer, params, rule, mode, steps, at=lambda step: {}, anchors=None) -> None:
    """Steps, and compares each tensor with the reference's trajectory. `at` gives lr and lambda of a step."""
    expected, states = [numpy64(p).copy() for p in params], [{} for _ in params]
    for step in range(1, steps + 1):
        train(optimizer, params, [step])
        for i, p in enumerate(params):
            settings = {"lr": 0.05, "weight_decay": 0.7, **at(step), "hyper": HYPER[rule]}
            anchor = 0.0 if anchors is None else anchors[i]
            g = numpy64(gradient_of(p, i, step))
            expected[i] = reference.step(rule, mode, expected[i], g, states[i], **settings, anchor=anchor)[0]
    for p, x in zip(params, expected, strict=True):
        assert_close(p.detach(), torch.as_tensor(x), **DOUBLE)


STEPS = 8
SCHEDULES = {  # what is left of lambda in update number `step`, from 1
    "constant": lambda step: 1.0,
    "linear": lambda step: max(0.0, 1 - (step - 1) / 5),
    "cosine": lambda step: (1 + math.cos(math.pi * min(1.0, (step - 1) / 5))) / 2,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mode", ["cautious", "scaled"])
@each_path
def test_lambda_follows_its_schedule_and_stays_at_zero_after_it(path, mode, schedule):
    params = tensors()
    optimizer = make("adamw", params, mode, decay_schedule=schedule, decay_steps=5, **PATHS[path])
    follow(optimizer, params, "adamw", mode, STEPS, lambda step: {"weight_decay": 0.7 * SCHEDULES[schedule](step)})


@each_path
def test_corrected_decay_goes_with_the_square_of_the_rate_over_the_largest(path):
    """AdamC: lr_max is the constructor's lr, whatever a warm-up makes of it before the first step."""
    params, rates = tensors(), {}
    optimizer = make("adamw", params, decay_schedule="corrected", lr=0.2, **PATHS[path])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: [0.1, 0.5, 1.0, 0.7, 0.3, 0.2, 0.1, 0.0][t])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    assert optimizer.param_groups[0]["lr_max"] == 0.2

    def at(step):
        rates[step] = optimizer.param_groups[0]["lr"]
        return {"lr": rates[step], "weight_decay": 0.7 * rates[step] / 0.2}

    expected, states = [numpy64(p).copy() for p in params], [{} for _ in params]
    for step in range(1, 8):
        settings = {**at(step), "hyper": HYPER["adamw"]}
        train(optimizer, params, [step])
        scheduler.step()
        for i, p in enumerate(params):
            g = numpy64(gradient_of(p, i, step))
            expected[i] = reference.step("adamw", "cautious", expected[i], g, states[i], **settings)[0]
    assert len(set(rates.values())) > 4
    for p, x in zip(params, expected, strict=True):
        assert_close(p.detach(), torch.as_tensor(x), **DOUBLE)


def test_lr_max_may_be_given_and_changed_for_each_group():
    params = [torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr_max": 1.0}, {"params": [params[1]]}]
    optimizer = SGD(groups, lr=0.5, momentum=0.0, weight_decay=1.0, decay="decoupled", decay_schedule="corrected")
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()  # x - lr^2 / lr_max x
    assert [p[0].item() for p in params] == [0.75, 0.5]
    optimizer.param_groups[1]["lr_max"] = 2.0
    optimizer.step()
    assert [p[0].item() for p in params] == [0.5625, 0.4375]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "random"])
@pytest.mark.parametrize("anchor", [0.5, -1, "initial", "preset"])
@pytest.mark.parametrize("path", QUICK_PATHS)
def test_decay_goes_towards_the_anchor_and_masks_see_the_distance_to_it(path, anchor, mode, monkeypatch):
    monkeypatch.setattr(eager, "PIECE", 8)
    params = tensors()
    optimizer = make("lion", params, mode, anchor="initial" if anchor == "preset" else anchor, **PATHS[path])
    anchors = [numpy64(p).copy() if anchor == "initial" else anchor for p in params]
    if anchor == "preset":
        for i, p in enumerate(params):
            optimizer.state[p]["anchor"] = normal(*p.shape, seed=70 + i)
        anchors = [numpy64(optimizer.state[p]["anchor"]).copy() for p in params]
    follow(optimizer, params, "lion", mode, STEPS, anchors=anchors)
    if isinstance(anchor, str):
        for p, a in zip(params, anchors, strict=True):
            assert_close(optimizer.state[p]["anchor"], torch.as_tensor(a), **EXACT)  # which no step changes


@pytest.mark.slow
@pytest.mark.parametrize("anchor", [0.5, "initial"])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "random"])
@pytest.mark.parametrize("path", ["compiled", "flat compiled"])
def test_compiled_decay_goes_towards_the_anchor(path, anchor, mode):
    params = tensors()
    anchors = [numpy64(p).copy() if anchor == "initial" else anchor for p in params]
    follow(make("lion", params, mode, anchor=anchor, **PATHS[path]), params, "lion", mode, STEPS, anchors=anchors)


@pytest.mark.parametrize("path", QUICK_PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("duplicate", ["state dict", "deepcopy"])
def test_an_anchor_goes_along_with_the_state_in_its_own_dtype(duplicate, dtype, path):
    params = tensors(torch.bfloat16)
    optimizer = make("adamw", params, anchor="initial", **PATHS[path])
    for i, p in enumerate(params):
        optimizer.state[p]["anchor"] = normal(*p.shape, seed=50 + i, dtype=dtype)
    train(optimizer, params, [1, 2])
    if duplicate == "deepcopy":
        again = copy.deepcopy(optimizer)
        twins = again.param_groups[0]["params"]
    else:
        twins = [torch.nn.Parameter(v) for v in values(params)]
        again = make("adamw", twins, anchor="initial", **PATHS[path])
        again.load_state_dict(optimizer.state_dict())
    for i, p in enumerate(twins):
        assert_close(again.state[p]["anchor"], normal(*p.shape, seed=50 + i, dtype=dtype), **EXACT)
    assert_close(train(again, twins, range(3, 6)), train(optimizer, params, range(3, 6)), **EXACT)


@pytest.mark.parametrize("anchor", [None, 0.5, "initial"])
@pytest.mark.parametrize("weight_decay", [1.0, 0.25])
def test_spd_takes_back_the_share_of_the_distance_that_a_step_grew_it_by(weight_decay, anchor, monkeypatch):
    """With weight_decay 1, to the distance before the step, where the step goes away from the anchor against the
    gradient's advice: <g, x - a> > 0. Else nothing."""
    monkeypatch.setattr(eager, "PIECE", 8)
    shrunk = 0
    for seed in range(12):
        p = torch.nn.Parameter(normal(6, 4, seed=seed))
        optimizer = make("sgd", [p], "spd", lr=0.8, weight_decay=weight_decay, anchor=anchor)
        optimizer.state[p]["momentum_buffer"] = normal(6, 4, seed=100 + seed)  # so that u is not g
        start = normal(6, 4, seed=seed) if anchor == "initial" else torch.full((6, 4), anchor or 0.0).double()
        if anchor == "initial":
            optimizer.state[p]["anchor"] = start = start + 0.5 * normal(6, 4, seed=200 + seed)
        x = p.detach() - start
        p.grad = normal(6, 4, seed=300 + seed)
        u = 0.9 * normal(6, 4, seed=100 + seed) + 0.1 * p.grad
        plain = x - 0.8 * u
        optimizer.step()
        distance, grown = (p.detach() - start).norm(), max(plain.norm() - x.norm(), torch.tensor(0.0))
        if (p.grad * x).sum() > 0 and grown > 0:
            shrunk += 1
            assert_close(distance, plain.norm() - weight_decay * grown, **DOUBLE)
            assert_close((p.detach() - start) / distance, plain / plain.norm(), **DOUBLE)
        else:
            assert_close(p.detach() - start, plain, **DOUBLE)
    assert 0 < shrunk < 12


# name: what a group is told after two steps, and what the reference does from then on
CHANGES = {
    "lr": ({"lr": 0.2}, {"lr": 0.2}),
    "lambda": ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "mode": ({"decay": "opposite"}, {"mode": "opposite"}),
    "mode that looks at the whole": ({"decay": "inner_product"}, {"mode": "inner_product"}),
    "betas": ({"betas": (0.5, 0.6)}, {"hyper": {"betas": (0.5, 0.6), "eps": 1e-8}}),
    "eps": ({"eps": 0.1}, {"hyper": {"betas": (0.9, 0.95), "eps": 0.1}}),
    "maximize": ({"maximize": True}, {"sign": -1.0}),
    "anchor": ({"anchor": 0.5}, {"anchor": 0.5}),
    "schedule": ({"decay_schedule": "linear", "decay_steps": 4}, {"lambdas": {3: 0.35, 4: 0.175, 5: 0.0}}),
    "corrected": ({"decay_schedule": "corrected", "lr_max": 0.2}, {"weight_decay": 0.175}),
}


@pytest.mark.parametrize("change", CHANGES)
@each_path
def test_an_option_that_changes_between_steps_takes_effect(path, change):
    params = tensors()
    optimizer = make("adamw", params, **PATHS[path])
    expected, states = [numpy64(p).copy() for p in params], [{} for _ in params]
    settings = {"mode": "cautious", "lr": 0.05, "weight_decay": 0.7, "hyper": HYPER["adamw"], "anchor": 0.0}
    sign, lambdas = 1.0, {}
    for step in range(1, 6):
        if step == 3:
            told, then = CHANGES[change]
            optimizer.param_groups[0].update(told)
            settings |= {name: value for name, value in then.items() if name in settings}
            sign, lambdas = then.get("sign", 1.0), then.get("lambdas", {})
        train(optimizer, params, [step])
        now = settings | {"weight_decay": lambdas.get(step, settings["weight_decay"])}
        for i, p in enumerate(params):
            g = sign * numpy64(gradient_of(p, i, step))
            expected[i] = reference.step("adamw", x=expected[i], g=g, state=states[i], **now)[0]
    for p, x in zip(params, expected, strict=True):
        assert_close(p.detach(), torch.as_tensor(x), **DOUBLE)


SETTINGS = [
    {"lr": 0.1, "betas": (0.8, 0.9), "decay": "random", "stochastic_rounding": True},
    {"weight_decay": 0.2, "decay": "spd", "anchor": "initial", "state_dtype": torch.bfloat16},
    {"eps": 0.1, "decay": "opposite", "decay_schedule": "cosine", "decay_steps": 3, "maximize": True},
    {"lr": 0.2, "decay_schedule": "corrected", "lr_max": 0.4, "anchor": 0.5, "state_dtype": torch.float64},
    {"stochastic_rounding": True, "state_dtype": torch.bfloat16, "decay": "inner_product"},
]


@each_path
def test_every_option_may_differ_between_groups(path):
    """Each tensor is stepped as it would be in an optimizer of its own, at the same place."""
    shapes = [(7,), (5,), (6,), (8,), (9,)]
    together, alone = ([torch.nn.Parameter(normal(*s, dtype=torch.bfloat16)) for s in shapes] for _ in range(2))
    groups = [{"params": [p], **own} for p, own in zip(together, SETTINGS, strict=True)]
    joined = AdamW(groups, lr=0.05, seed=3, **PATHS[path])
    separate = []
    for i, own in enumerate(SETTINGS):
        others = [torch.nn.Parameter(torch.zeros(1)) for _ in range(i)]  # never with a gradient: they hold a place
        group = {"params": alone[i : i + 1], **own}
        separate.append(AdamW([{"params": others}, group] if i else [group], lr=0.05, seed=3, **PATHS[path]))
    for step in range(1, 6):
        train(joined, together, [step])
        set_gradients(alone, step)
        for optimizer in separate:
            optimizer.step()
    assert_close(values(together), values(alone), **EXACT)


@each_path
@pytest.mark.parametrize("mode", ["cautious", "spd"])
@pytest.mark.parametrize("schedule", ["constant", "corrected"])
def test_the_rate_may_be_a_tensor_that_is_changed_in_place(path, mode, schedule):
    params = [*tensors(), torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))]
    lr = torch.tensor(0.1)  # float32: 0.100000001490116...
    optimizer = make("adamw", params, mode, lr=lr, decay_schedule=schedule, **PATHS[path])
    assert optimizer.param_groups[0]["lr"] is lr
    rates = {step: torch.tensor(0.1 / step).item() for step in range(1, 6)}
    largest = rates[1]

    def at(step):
        return {"lr": rates[step], "weight_decay": 0.7 * (rates[step] / largest if schedule == "corrected" else 1)}

    expected, states = [numpy64(p).copy() for p in params], [{} for _ in params]
    for step in range(1, 6):
        lr.fill_(0.1 / step)
        train(optimizer, params, [step])
        for i, p in enumerate(params):
            settings = {**at(step), "hyper": HYPER["adamw"]}
            g = numpy64(gradient_of(p, i, step))
            expected[i] = reference.step("adamw", mode, expected[i], g, states[i], **settings)[0]
    for p, x in zip(params, expected, strict=True):
        assert_close(p.detach(), torch.as_tensor(x), **DOUBLE)


COMPLEX = {"vector": lambda x: x, "transposed": lambda x: x.mT}


@pytest.mark.parametrize("layout", COMPLEX)
@pytest.mark.parametrize("rule", ["adamw", "lion", "sgd"])
@each_mode
def test_a_complex_parameter_is_stepped_as_its_real_and_imaginary_parts(mode, rule, layout):
    """As one real tensor of them, and under modes that look at single coordinates as two."""
    x, gs = normal(4, 3, 2), [normal(4, 3, 2, seed=step) for step in range(1, 6)]
    z = torch.nn.Parameter(COMPLEX[layout](torch.view_as_complex(x.clone())))
    pairs = torch.nn.Parameter(torch.view_as_real(z.detach().clone()))
    parts = [torch.nn.Parameter(pairs[..., i].detach().clone()) for i in range(2)]
    optimizers = [make(rule, params, mode, anchor=0.25) for params in ([z], [pairs], parts)]
    for g in gs:
        z.grad = COMPLEX[layout](torch.view_as_complex(g))
        pairs.grad = torch.view_as_real(z.grad).clone()
        parts[0].grad, parts[1].grad = z.grad.real.clone(), z.grad.imag.clone()
        for optimizer in optimizers:
            optimizer.step()
    # sums over a tensor in another layout may go in another order
    assert_close(torch.view_as_real(z.detach()), pairs.detach(), **(DOUBLE if mode == "spd" else EXACT))
    if MODES[mode].sums is None:
        assert_close(torch.stack(values(parts), -1), pairs.detach(), **EXACT)
    assert {v.dtype for k, v in optimizers[0].state[z].items() if k != "step"} == {torch.complex128}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cautious", "random", "spd"])
def test_a_complex_parameter_compiles_as_a_real_one(mode):
    z = torch.nn.Parameter(torch.view_as_complex(normal(12, 2)))
    pairs = torch.nn.Parameter(normal(12, 2))
    optimizers = [make("adamw", [p], mode, compile=True) for p in (z, pairs)]
    for step in range(1, 5):
        pairs.grad = normal(12, 2, seed=step)
        z.grad = torch.view_as_complex(pairs.grad.clone())
        for optimizer in optimizers:
            optimizer.step()
    assert all(len(optimizer._plan.sets[0].chunks) == 1 for optimizer in optimizers)
    assert_close(torch.view_as_real(z.detach()), pairs.detach(), **EXACT)


def test_a_gradient_that_is_lazily_conjugated_is_the_conjugate():
    left, right = (torch.nn.Parameter(normal(5, dtype=torch.complex128)) for _ in range(2))
    g = torch.complex(normal(5, seed=1), normal(5, seed=2))
    left.grad, right.grad = g.conj(), g.conj().resolve_conj()
    assert left.grad.is_conj()
    for p in (left, right):
        make("adamw", [p]).step()
    assert_close(left.detach(), right.detach(), **EXACT)


@pytest.mark.parametrize("mode", [mode for mode in MODES if MODES[mode].sums is None])
def test_a_stack_of_matrices_is_its_matrices_one_by_one(mode):
    stack = torch.nn.Parameter(normal(3, 6, 4))
    matrices = [torch.nn.Parameter(x.clone()) for x in stack.detach()]
    joined, separate = make("muon", [stack], mode), make("muon", matrices, mode)
    for step in range(1, 6):
        stack.grad = normal(3, 6, 4, seed=step)
        for p, g in zip(matrices, stack.grad, strict=True):
            p.grad = g.clone()
        joined.step()
        separate.step()
    assert_close(stack.detach(), torch.stack(values(matrices)), rtol=0, atol=5 * 485 * 2**-50)
