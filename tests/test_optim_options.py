"""Options of the native optimizers, each against its own formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from tests.optim_helpers import EXACT, make, normal, train


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_anchor_keeps_its_own_dtype_in_a_state_dict(dtype):
    p = torch.nn.Parameter(normal(5, dtype=torch.bfloat16))
    optimizer = make("adamw", [p], anchor="initial")
    optimizer.state[p]["anchor"] = normal(5, seed=1, dtype=dtype)
    train(optimizer, [p], [1])
    twin = torch.nn.Parameter(p.detach().clone())
    again = make("adamw", [twin], anchor="initial")
    again.load_state_dict(optimizer.state_dict())
    assert again.state[twin]["anchor"].dtype == dtype
    assert_close(train(again, [twin], range(2, 6)), train(optimizer, [p], range(2, 6)), **EXACT)


def test_a_gradient_that_is_lazily_conjugated_is_the_conjugate():
    left, right = (torch.nn.Parameter(normal(5, dtype=torch.complex128)) for _ in range(2))
    g = torch.complex(normal(5, seed=1), normal(5, seed=2))
    left.grad, right.grad = g.conj(), g.conj().resolve_conj()
    assert left.grad.is_conj()
    for p in (left, right):
        make("adamw", [p]).step()
    assert_close(left.detach(), right.detach(), **EXACT)
