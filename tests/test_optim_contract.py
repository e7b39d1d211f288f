"""What every optimizer keeps to: arguments, groups, dtypes, gradients that are absent, closures, observers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import RULES, SGD, AdamW, Muon, Observation, RuleOptimizer
from tests import optim_reference as reference
from tests.optim_helpers import (
    CLASSES,
    DOUBLE,
    EXACT,
    HYPER,
    REFUSED,
    each_elementwise_rule,
    each_mode,
    each_rule,
    gradient_of,
    make,
    normal,
    numpy64,
    parameters,
    set_gradients,
    tensor,
    train,
    values,
)


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


def test_sparse_gradients_are_refused_by_name():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    for params, name in (([("tokens.weight", embedding.weight)], "tokens.weight"), ([embedding.weight], "group0.0")):
        optimizer = AdamW(params)
        embedding(torch.tensor([1])).sum().backward()
        before = embedding.weight.detach().clone()
        with pytest.raises(ValueError, match=rf"{name}: sparse"):
            optimizer.step()
        assert torch.equal(embedding.weight, before)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")  # torch's warning
@pytest.mark.parametrize(("cls", "arguments", "words"), REFUSED, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_a_bad_value_is_refused_with_its_name_and_the_range(cls, arguments, words):
    with pytest.raises(ValueError) as error:
        cls(**{"params": [tensor(2, 2)], **arguments})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "bad", [{"lr": -1.0}, {"decay": "no"}, {"rule": "no"}, {"betas": 0.9}, {"lr": None}, {"lr": "fast"}], ids=str
)
def test_a_bad_group_leaves_the_optimizer_as_it_was(bad):
    params, alone = parameters("adamw"), parameters("adamw")
    optimizer = make("adamw", params)
    extra = torch.nn.Parameter(torch.ones(3))
    with pytest.raises((ValueError, TypeError)):
        optimizer.add_param_group({"params": [extra], **bad})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [extra]})  # and the tensor can still be added
    assert_close(train(optimizer, params, range(1, 4)), train(make("adamw", alone), alone, range(1, 4)), **EXACT)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_alone_brings_its_default_hyperparameters(rule):
    params, named = parameters(rule), parameters(rule)
    bare = RuleOptimizer(params, {"rule": rule, "lr": 0.05, "weight_decay": 0.7})
    full = RuleOptimizer(named, {"rule": rule, "lr": 0.05, "weight_decay": 0.7, **RULES[rule].defaults})
    assert_close(train(bare, params, range(1, 4)), train(full, named, range(1, 4)), **EXACT)


@pytest.mark.parametrize("rule", RULES)
def test_a_rules_defaults_are_its_classs_defaults(rule):
    params = [torch.nn.Parameter(torch.zeros(2, 2))]
    group = CLASSES[rule](params).param_groups[0]
    assert group["decay"] == "cautious"
    assert {name: group[name] for name in RULES[rule].defaults} == RULES[rule].defaults


def test_a_muon_optimizer_with_an_adamw_group_is_muon_and_adamw():
    def tensors():
        return torch.nn.Parameter(normal(6, 4)), torch.nn.Parameter(normal(4, seed=1))

    adamw = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.3, "decay": "opposite"}
    matrix, bias = tensors()
    both = Muon([{"params": [matrix]}, {"params": [bias], "rule": "adamw", **adamw}], lr=0.05)
    lone_matrix, lone_bias = tensors()
    muon_alone, adamw_alone = Muon([lone_matrix], lr=0.05), AdamW([lone_bias], **adamw)
    for step in range(1, 9):
        train(both, [matrix, bias], [step])
        set_gradients([lone_matrix, lone_bias], step)
        muon_alone.step()
        adamw_alone.step()
    assert_close([matrix, bias], [lone_matrix, lone_bias], **EXACT)


def test_a_group_of_another_rule_takes_that_rules_defaults_not_the_optimizers():
    bias = torch.nn.Parameter(torch.zeros(3))
    optimizer = Muon([{"params": [bias], "rule": "adamw"}], eps=1e-3)
    assert {k: optimizer.param_groups[0][k] for k in RULES["adamw"].defaults} == RULES["adamw"].defaults


@each_rule
def test_groups_may_differ_in_mode_rate_and_lambda(rule):
    settings = [
        {"lr": 0.05, "weight_decay": 0.7, "decay": "cautious"},
        {"lr": 0.01, "weight_decay": 0.2, "decay": "scaled"},
        {"lr": 0.1, "weight_decay": 0.0, "decay": "opposite", "maximize": True},
    ]
    together, alone = parameters(rule), parameters(rule)
    joined = CLASSES[rule]([{"params": [p], **s} for p, s in zip(together, settings, strict=True)], lr=3.0)
    separate = [CLASSES[rule]([p], **s) for p, s in zip(alone, settings, strict=True)]
    for step in range(1, 6):
        train(joined, together, [step])
        set_gradients(alone, step)
        for optimizer in separate:
            optimizer.step()
    assert_close(values(together), values(alone), **EXACT)


def test_a_closure_runs_once_with_gradients_on_and_its_loss_comes_back():
    p, calls = torch.nn.Parameter(torch.tensor([3.0])), []
    optimizer = SGD([p], lr=0.5, momentum=0.0, weight_decay=0.0)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert calls == [True]
    assert p.item() == 0.0  # 3 - 0.5 * 6: the closure's gradient was used
    assert SGD([p]).step() is None


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=12, cycle_momentum=False),
    ],
    ids=["cosine", "lambda", "one cycle"],
)
def test_torchs_schedulers_set_the_rate_of_update_and_decay(schedule):
    p = torch.nn.Parameter(normal(7))
    optimizer = make("adamw", [p])
    scheduler, x, state, rates = schedule(optimizer), numpy64(p).copy(), {}, []
    for step in range(1, 9):
        rates.append(scheduler.get_last_lr()[0])
        train(optimizer, [p], [step])
        scheduler.step()
        settings = {"lr": rates[-1], "weight_decay": 0.7, "hyper": HYPER["adamw"]}
        x = reference.step("adamw", "cautious", x, numpy64(gradient_of(p, 0, step)), state, **settings)[0]
    assert len(set(rates)) == 8
    assert_close(p.detach(), torch.as_tensor(x), **DOUBLE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("maximize", [False, True])
@each_rule
def test_the_observer_sees_x_before_the_step_the_final_u_and_the_gradient_descended(rule, maximize, dtype):
    params, seen = parameters(rule, dtype), []
    optimizer = make(rule, [(f"p{i}", p) for i, p in enumerate(params)], maximize=maximize)
    optimizer.observer = lambda o: seen.append(Observation(o.name, o.x.clone(), o.u.clone(), o.g.clone()))
    for step in range(1, 4):
        before = values(params)
        seen.clear()
        train(optimizer, params, [step])
        assert [o.name for o in seen] == ["p0", "p1", "p2"]
        for i, (p, x, o) in enumerate(zip(params, before, seen, strict=True)):
            assert torch.equal(o.x.to(dtype), x)
            assert torch.equal(o.g.to(dtype), gradient_of(p, i, step) * (-1 if maximize else 1))
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert {o.x.dtype, o.u.dtype, o.g.dtype} == {wide}
            mask = torch.as_tensor(reference.not_opposed(o.u.numpy(), o.x.numpy()))
            expected = (o.x - 0.05 * (o.u + 0.7 * (mask * o.x))).to(dtype)
            assert_close(p.detach(), expected, **(DOUBLE if dtype == torch.float64 else EXACT))


@each_mode
@each_rule
def test_an_observer_does_not_change_the_step(rule, mode):
    watched, alone = parameters(rule), parameters(rule)
    optimizer, seen = make(rule, watched, mode), []
    optimizer.observer = lambda o: seen.append(o.name)
    assert_close(train(optimizer, watched, range(1, 6)), train(make(rule, alone, mode), alone, range(1, 6)), **EXACT)
    assert len(seen) == 5 * len(watched)
