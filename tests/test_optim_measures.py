"""Measures and observers: what they say, and that watching a step does not change it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import Observation
from tests import optim_reference as reference
from tests.optim_helpers import (
    DOUBLE,
    EXACT,
    each_mode,
    each_rule,
    gradient_of,
    make,
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
