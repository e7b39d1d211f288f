"""CautiousWeightDecay among torch's tools: schedulers, scalers, hooks, accelerate, state dicts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from cwd.optim import AdamW
from cwd.optim.wrapper import CautiousWeightDecay
from tests.wrapper_helpers import (
    BETAS,
    EXACT,
    TOLERANCE,
    each_mode,
    fused_adamw,
    loss_of,
    network,
    normal,
    parameters,
    plain_adamw,
    train,
    values,
    wrapped,
)


def test_it_is_an_optimizer_with_the_inner_ones_own_groups_and_state():
    params = parameters()
    inner = plain_adamw(params, lr=0.05)
    optimizer = CautiousWeightDecay(inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(optimizer, params, [1])
    for _ in range(2):
        assert optimizer.param_groups is inner.param_groups
        assert optimizer.state is inner.state
        assert optimizer.defaults is inner.defaults
        optimizer.load_state_dict(optimizer.state_dict())  # after which torch's are new objects
    optimizer.param_groups = groups = [dict(group) for group in inner.param_groups]
    assert inner.param_groups is groups


SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=12),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.3, anneal_epochs=5),
}


def train_with_schedule(optimizer, schedule, params) -> list[float]:
    rates = []
    for step in range(1, 9):
        train(optimizer, params, [step])
        schedule.step(*([1.0] if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("on", ["wrapper", "inner"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_on_either_object_set_the_rate_of_update_and_decay(schedule, on):
    ours, theirs = parameters(), parameters()
    optimizer, native = wrapped(ours), AdamW(theirs, lr=0.05, betas=BETAS, weight_decay=0.7)
    make = SCHEDULES[schedule]
    rates = train_with_schedule(optimizer, make(optimizer if on == "wrapper" else optimizer.optimizer), ours)
    assert train_with_schedule(native, make(native), theirs) == rates
    assert len(set(rates)) > 3
    assert_close(values(ours), values(theirs), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("lr", [0.05, torch.tensor(0.05, dtype=torch.float64)], ids=["number", "tensor"])
@pytest.mark.parametrize("on", ["wrapper", "inner"])
def test_a_schedule_stepped_by_a_hook_comes_after_the_decay(on, lr):
    ours, theirs = parameters(), parameters()
    optimizer = wrapped(ours, inner=fused_adamw, lr=copy.deepcopy(lr))
    native = AdamW(theirs, lr=0.05, betas=BETAS, weight_decay=0.7)
    target = optimizer if on == "wrapper" else optimizer.optimizer
    for each, hooked in ((target, target), (native, native)):
        schedule = torch.optim.lr_scheduler.ExponentialLR(each, 0.5)
        hooked.register_step_post_hook(lambda *_, schedule=schedule: schedule.step())
    assert_close(train(optimizer, ours, range(6)), train(native, theirs, range(6)), **TOLERANCE[torch.float64])


@pytest.mark.parametrize("tensor", [False, True])
@each_mode
def test_a_rate_of_zero_changes_nothing(mode, tensor):
    params = parameters(torch.float32)
    before = values(params)
    lr = torch.tensor(0.0) if tensor else 0.0
    assert_close(train(wrapped(params, mode, fused_adamw, lr=lr), params, range(3)), before, **EXACT)


def test_accelerate_trains_the_same():
    plain, prepared = network(), network()
    optimizer = wrapped(plain.parameters(), "random", fused_adamw)
    accelerator = Accelerator(cpu=True)
    theirs, accelerated = accelerator.prepare(prepared, wrapped(prepared.parameters(), "random", fused_adamw))
    for batch in range(6):
        loss_of(plain, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        accelerator.backward(loss_of(theirs, batch))
        accelerated.step()
        accelerated.zero_grad()
    assert_close(values(prepared.parameters()), values(plain.parameters()), **EXACT)
    assert accelerated.param_groups[0]["cwd_step"] == 6
    with pytest.raises(ValueError, match="wrap the bare optimizer"):
        CautiousWeightDecay(accelerator.prepare(plain_adamw(prepared.parameters())))


@pytest.mark.parametrize("inner", [plain_adamw, fused_adamw], ids=["single", "fused"])
def test_a_grad_scaler_skips_steps_with_infinite_gradients_whole(inner):
    scaled, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, alone = wrapped(scaled, inner=inner), wrapped(plain, inner=inner)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(1, 7):
        before, state = values(scaled), copy.deepcopy(optimizer.state_dict())
        scale = scaler.scale(torch.ones(()))
        for i, (p, q) in enumerate(zip(scaled, plain, strict=True)):
            g = normal(*p.shape, seed=100 * step + i, dtype=torch.float32)
            p.grad, q.grad = g * scale, g.clone()
        if step % 3 == 0:
            scaled[1].grad[2] = math.inf
            scaler.step(optimizer)
            assert_close(values(scaled), before, **EXACT)
            assert str(optimizer.state_dict()) == str(state)
        else:
            scaler.step(optimizer)
            alone.step()
        scaler.update()
    assert scaler.get_scale() == 2.0**6
    assert_close(values(scaled), values(plain), **EXACT)  # powers of 2: unscaled without rounding
    assert optimizer.param_groups[0]["cwd_step"] == 4


def test_a_closure_runs_once_with_gradients_on_and_its_loss_comes_back():
    p, calls = torch.nn.Parameter(torch.tensor([3.0])), []
    optimizer = CautiousWeightDecay(torch.optim.SGD([p], lr=0.25), 0.5)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert calls == [True]
    assert p.item() == 3.0 - 0.25 * (6.0 + 0.5 * 3.0)  # the gradient came with the closure, and the decay with it
    assert optimizer.step() is None


def test_lbfgs_works_with_a_closure_and_needs_it():
    p = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
    q = torch.nn.Parameter(p.detach().clone())
    optimizer = CautiousWeightDecay(torch.optim.LBFGS([p], lr=0.5, max_iter=3), 0.5)
    bare = torch.optim.LBFGS([q], lr=0.5, max_iter=3)

    def closure(o, x):
        o.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss

    bare.step(lambda: closure(bare, q))
    assert optimizer.step(lambda: closure(optimizer, p)).item() == 25.0
    assert_close(p.detach(), q.detach() - 0.5 * 0.5 * torch.tensor([3.0, -4.0]))  # it moved towards 0: both agree
    with pytest.raises(TypeError, match="closure"):
        optimizer.step()


def test_step_hooks_of_both_fire_once_each_with_their_own_optimizer():
    params, calls = parameters(), []
    optimizer = wrapped(params)
    for name, one in (("outer", optimizer), ("inner", optimizer.optimizer)):
        one.register_step_pre_hook(lambda o, *_, name=name: calls.append((name, "pre", o)))
        one.register_step_post_hook(lambda o, *_, name=name: calls.append((name, "post", o)))
    train(optimizer, params, [1])
    inner = optimizer.optimizer
    assert [(name, when) for name, when, _ in calls] == [
        ("outer", "pre"), ("inner", "pre"), ("inner", "post"), ("outer", "post"),
    ]  # fmt: skip
    assert all(o is (optimizer if name == "outer" else inner) for name, _, o in calls)


def test_state_dict_hooks_registered_on_either_fire_once():
    calls = []
    original = wrapped(parameters())
    for optimizer in (original, copy.deepcopy(original)):
        calls.clear()
        for one in (optimizer, optimizer.optimizer):
            one.register_state_dict_pre_hook(lambda *_: calls.append("save"))
            one.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
        optimizer.load_state_dict(optimizer.state_dict())
        assert calls == ["save", "save", "load", "load"]


def test_zero_grad_attributes_and_repr():
    params = parameters()
    optimizer = wrapped(params[:1])
    optimizer.add_param_group({"params": params[1:2], "cwd_mode": "scaled", "cwd_weight_decay": 0.25})
    optimizer.add_param_group({"params": params[2:]})
    assert repr(optimizer) == "CautiousWeightDecay(AdamW, cautious 0.7, scaled 0.25)"
    train(optimizer, params, [1])
    optimizer.zero_grad(set_to_none=False)
    assert not any(p.grad.any() for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    optimizer.optimizer.train = lambda: "training"
    assert optimizer.train() == "training"
    assert not hasattr(optimizer, "eval")
