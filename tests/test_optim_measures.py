"""Measures and observers: what they say, and that watching a step does not change it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cwd.optim import Observation, eager
from cwd.optim.draws import uniform
from tests import optim_reference as reference
from tests.optim_helpers import (
    DOUBLE,
    EXACT,
    HYPER,
    PATHS,
    each_mode,
    each_rule,
    gradient_of,
    make,
    normal,
    numpy64,
    parameters,
    train,
    values,
)


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


FIELDS = ["mask_ratio", "strict_ratio", "decay_ratio", "rms_x", "rms_u", "rms_g"]
each_path = pytest.mark.parametrize(
    "path", ["eager", "flat", *(pytest.param(p, marks=pytest.mark.slow) for p in PATHS if "compiled" in p)]
)


def rms(values: np.ndarray) -> float:
    return math.sqrt(math.fsum(np.ravel(values) ** 2) / values.size)


def summary(x, u, g, decay, anchor=0.0) -> dict[str, float]:
    """The fields, by their definitions."""
    x, u, g, decay = (np.asarray(v, float) for v in (x, u, g, decay))
    signs = np.sign(u) * np.sign(x - anchor)
    ratio = rms(decay) / rms(u) if rms(u) else 0.0
    return dict(zip(FIELDS, [np.mean(signs >= 0), np.mean(signs > 0), ratio, rms(x), rms(u), rms(g)], strict=True))


def small_pieces(monkeypatch) -> None:
    """All ways of a step at sizes that are quick."""
    for name, size in {"PIECE": 16, "SMALL": 8, "TOGETHER": 100}.items():
        monkeypatch.setattr(eager, name, size)


def some(rule: str) -> list[torch.nn.Parameter]:
    shapes = [(6, 4), (4, 6)] if rule == "muon" else [(6, 4), (7,), (2, 2), (), (35,)]
    params = [torch.nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        params[0][1].zero_()  # which agree, but not strictly
    return params


@pytest.mark.parametrize("anchor", [None, 0.5])
@each_mode
@each_rule
@each_path
def test_measures_are_what_their_definitions_say(path, rule, mode, anchor, monkeypatch):
    small_pieces(monkeypatch)
    params, a = some(rule), anchor or 0.0
    optimizer = make(rule, [(f"p{i}", p) for i, p in enumerate(params)], mode, anchor=anchor, seed=5, **PATHS[path])
    optimizer.measure = True
    states, settings = [{} for _ in params], {"lr": 0.05, "weight_decay": 0.7, "hyper": HYPER[rule], "anchor": a}
    for step in range(1, 4):
        before, everything = [numpy64(p).copy() for p in params], []
        train(optimizer, params, [step])
        found = optimizer.take_measures()
        for i, x in enumerate(before):
            g, draws = numpy64(gradient_of(params[i], i, step)), uniform(params[i].shape, (5, step, i)).numpy()
            after, u, factor = reference.step(rule, mode, x, g, states[i], **settings, draws=draws)
            decay = (x - 0.05 * u - after) / 0.05 if mode == "spd" else 0.7 * factor * (x - a) * np.ones_like(x)
            assert found["tensors"][f"p{i}"] == pytest.approx(summary(x, u, g, decay, a), rel=1e-9, abs=1e-12)
            everything.append([np.ravel(v) for v in (x, u, g, decay)])
        together = [np.concatenate(parts) for parts in zip(*everything, strict=True)]
        assert found["overall"] == pytest.approx(summary(*together, a), rel=1e-9, abs=1e-12)


@each_mode
@each_rule
@each_path
def test_measuring_changes_no_bit_of_a_step(path, rule, mode, monkeypatch):
    small_pieces(monkeypatch)
    measured, alone = some(rule), some(rule)
    optimizer, plain = make(rule, measured, mode, **PATHS[path]), make(rule, alone, mode, **PATHS[path])
    for step in range(1, 7):
        optimizer.measure = step % 3 != 0
        assert_close(train(optimizer, measured, [step]), train(plain, alone, [step]), **EXACT)
    assert_close(optimizer.state_dict()["state"], plain.state_dict()["state"], **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_measures_of_low_precision_are_those_of_the_wide_step(dtype):
    p = torch.nn.Parameter(normal(50).to(dtype))
    optimizer = make("sgd", [p], momentum=0.0)
    optimizer.measure = True
    x, p.grad = numpy64(p).copy(), normal(50, seed=1).to(dtype)
    optimizer.step()
    u = numpy64(p.grad)
    expected = summary(x, u, u, 0.7 * reference.not_opposed(u, x) * x)
    assert optimizer.take_measures()["overall"] == pytest.approx(expected, rel=1e-5)


def test_measures_of_a_complex_tensor_are_those_of_its_parts():
    z = torch.nn.Parameter(torch.view_as_complex(normal(9, 2)))
    optimizer = make("sgd", [z], "scaled", momentum=0.0)
    optimizer.measure = True
    x, u = normal(9, 2).numpy(), normal(9, 2, seed=1).numpy()
    z.grad = torch.view_as_complex(normal(9, 2, seed=1))
    optimizer.step()
    expected = summary(x, u, u, 0.7 * np.mean(reference.not_opposed(u, x)) * x)
    assert optimizer.take_measures()["overall"] == pytest.approx(expected, rel=1e-12)


def test_measures_are_of_the_last_step_that_was_measured_and_are_taken_once():
    params = some("adamw")
    optimizer = make("adamw", params)
    empty = {"overall": {}, "tensors": {}}
    train(optimizer, params, [1])
    assert optimizer.take_measures() == empty
    optimizer.measure = True
    train(optimizer, params, [2, 3])
    x = math.sqrt(sum((p.detach() ** 2).sum().item() for p in params) / sum(p.numel() for p in params))
    optimizer.take_measures()
    train(optimizer, params, [4])
    optimizer.measure = False
    train(optimizer, params, [5])
    found = optimizer.take_measures()
    assert found["overall"]["rms_x"] == pytest.approx(x, rel=1e-12)
    assert list(found["tensors"]) == [f"group0.{i}" for i in range(len(params))]
    assert optimizer.take_measures() == empty


def test_measures_of_an_update_that_is_zero_have_no_ratio():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    p.grad = torch.zeros(2)
    optimizer = make("sgd", [p])
    optimizer.measure = True
    optimizer.step()
    assert optimizer.take_measures()["overall"] == {
        "mask_ratio": 1.0,
        "strict_ratio": 0.0,
        "decay_ratio": 0.0,
        "rms_x": math.sqrt(2.5),
        "rms_u": 0.0,
        "rms_g": 0.0,
    }
