"""Arguments, groups, closures, schedulers: what is refused, and what reaches the step."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import RULES, SGD, AdamW, Muon, RuleOptimizer
from tests import optim_reference as reference
from tests.optim_helpers import (
    CLASSES,
    DOUBLE,
    EXACT,
    HYPER,
    REFUSED,
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
