"""Stochastic rounding: unbiased, one of the two neighbours, a pure function of seed, step, tensor and element."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from cwd.optim import SGD, eager
from cwd.optim.draws import round_stochastically, words_of
from tests.optim_helpers import EXACT, PATHS, normal, values

WORDS = words_of((1, 2, 3))
MANY = 1 << 16


def neighbours(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bfloat16 numbers next to a float32, towards zero and away from it, as float32: by its bits."""
    bits = value.numpy().view(np.uint32)
    below = bits & np.uint32(0xFFFF0000)
    above = np.where(below == bits, bits, below + np.uint32(0x10000)).astype(np.uint32)
    return torch.from_numpy(below.view(np.float32)), torch.from_numpy(above.view(np.float32))


@pytest.mark.parametrize("value", [1 + 2**-8, 1 + 2**-16, -1.001, 3.14159, -1e-30, 1e30, 2 - 2**-20, 1e-42])
def test_rounding_is_unbiased(value):
    """The mean of many, within four standard errors."""
    values = torch.full((MANY,), value)
    rounded = round_stochastically(values, WORDS, 0)
    assert rounded.dtype == torch.bfloat16
    below, above = (v[0].item() for v in neighbours(values))
    exact, step = values[0].item(), above - below
    share = (exact - below) / step
    error = abs(step) * math.sqrt(share * (1 - share) / MANY)
    assert set(rounded.tolist()) <= {below, above}
    assert abs(rounded.double().mean().item() - exact) <= 4 * error


def test_rounding_goes_to_a_neighbour_and_leaves_what_needs_none():
    values = torch.cat([normal(5000, dtype=torch.float32), 1e-38 * normal(5000, seed=1, dtype=torch.float32)])
    below, above = neighbours(values)
    rounded = round_stochastically(values, WORDS, 0).float()
    assert ((rounded == below) | (rounded == above)).all()
    assert (rounded != values.to(torch.bfloat16)).any()
    exact = values.to(torch.bfloat16).float()
    assert_close(round_stochastically(exact, WORDS, 0).float(), exact, **EXACT)
    special = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0]).repeat(100)
    assert_close(round_stochastically(special, WORDS, 0).float(), special, equal_nan=True, **EXACT)
    signs = round_stochastically(special, WORDS, 0).signbit()
    assert torch.equal(signs.view(-1, 5)[:, 3:], torch.tensor([[False, True]]).expand(100, 2))


def test_rounding_is_a_function_of_the_words_and_the_number_of_the_element():
    values = normal(40, 25, dtype=torch.float32)
    whole = round_stochastically(values, WORDS, 0)
    assert torch.equal(whole.flatten()[300:700], round_stochastically(values.flatten()[300:700], WORDS, 300))
    assert torch.equal(whole.mT, round_stochastically(values.mT, WORDS, torch.arange(1000).view(40, 25).mT.reshape(-1)))
    assert torch.equal(whole, round_stochastically(values, torch.tensor(WORDS), torch.tensor(0)))
    assert not torch.equal(whole, round_stochastically(values, words_of((1, 2, 4)), 0))


def dyadic(*shape: int, seed: int) -> torch.Tensor:
    """Multiples of 1/64 up to about 4: sums and halves of a few are exact in float32, on every path."""
    return (64 * normal(*shape, seed=seed)).round() / 64


SHAPES = [(40, 25), (7,), (1,), (300,)]


def trained(steps: int = 4, seed: int = 3, state_dtype=torch.bfloat16, start: int = 0, mode="cautious", **options):
    """Parameters and buffers after steps whose float32 results are exact, so that only the rounding is by chance."""
    params = [torch.nn.Parameter(dyadic(*s, seed=i).to(torch.bfloat16)) for i, s in enumerate(SHAPES)]
    settings = {"momentum": 0.5, "weight_decay": 0.5, "decay": mode, "state_dtype": state_dtype, "seed": seed}
    optimizer = SGD(params, lr=2.0**-6, stochastic_rounding=True, **settings, **options)
    for step in range(start, start + steps):
        for i, p in enumerate(params):
            p.grad = dyadic(*p.shape, seed=100 * step + i).to(torch.bfloat16)
        optimizer.step()
    return values(params), [optimizer.state[p]["momentum_buffer"].clone() for p in params]


@pytest.mark.parametrize(
    "path", ["eager", "flat", *(pytest.param(path, marks=pytest.mark.slow) for path in ("compiled", "flat compiled"))]
)
@pytest.mark.parametrize("mode", ["cautious", "random", "inner_product"])
def test_every_path_draws_the_same(path, mode, monkeypatch):
    whole = trained(mode=mode, compile=False)
    monkeypatch.setattr(eager, "PIECE", 64)
    assert_close(trained(mode=mode, **PATHS[path]), whole, **EXACT)
    assert {buffer.dtype for buffer in whole[1]} == {torch.bfloat16}


def test_draws_differ_between_seeds_steps_and_tensors():
    params, buffers = trained(steps=2)
    others, other_buffers = trained(steps=2, seed=4)
    assert not torch.equal(params[0], others[0])
    assert not torch.equal(buffers[0], other_buffers[0])

    p, q = (torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = SGD([p, q], lr=2.0**-9, momentum=0.0, weight_decay=0.0, stochastic_rounding=True)
    seen = []
    for _ in range(2):
        for one in (p, q):
            one.data.fill_(1.0)
            one.grad = torch.ones_like(one)
        optimizer.step()
        seen += [p == 1, q == 1]  # 1 - 2**-9 is half-way between 1 - 2**-8 and 1
    for i, mask in enumerate(seen):
        assert abs(mask.sum() - 500) < 4 * 15.8
        for other in seen[:i]:  # independent: 500 +- 15.8 agree
            assert abs((mask == other).sum() - 500) < 4 * 15.8


def test_a_parameter_and_its_buffer_are_not_rounded_by_the_same_draws():
    p = torch.nn.Parameter(torch.zeros(2000, dtype=torch.bfloat16))
    options = {"momentum": 0.5, "dampening": 0.0, "weight_decay": 0.0, "state_dtype": torch.bfloat16}
    optimizer = SGD([p], lr=1.0, stochastic_rounding=True, **options)
    p.grad = torch.full_like(p, 1 + 2.0**-7)
    optimizer.state[p] = {"momentum_buffer": torch.full((2000,), 2.0**-7, dtype=torch.bfloat16)}
    optimizer.step()  # both are 1 + 3 * 2**-8, but for the sign, and half-way between two bfloat16 numbers
    same = (optimizer.state[p]["momentum_buffer"] == -p.detach()).sum()
    assert abs(same - 1000) < 4 * math.sqrt(500)


def test_steps_too_small_for_bfloat16_add_up():
    """Rounded to nearest they vanish; by chance their mean is right, within four standard errors."""
    n, steps, lr = 4096, 64, 2.0**-12
    means = {}
    for chance in (False, True):
        p = torch.nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
        optimizer = SGD([p], lr=lr, momentum=0.0, weight_decay=0.0, stochastic_rounding=chance)
        for _ in range(steps):
            p.grad = torch.ones_like(p)
            optimizer.step()
        means[chance] = p.detach().double().mean().item()
    assert means[False] == 1.0
    # below 1 the numbers are 2**-8 apart: one step's rounding has variance lr * (2**-8 - lr)
    error = math.sqrt(steps * lr * (2.0**-8 - lr) / n)
    assert abs(means[True] - (1 - steps * lr)) <= 4 * error


def test_without_the_option_rounding_is_to_nearest():
    p = torch.nn.Parameter(normal(1000).to(torch.bfloat16))
    p.grad = normal(1000, seed=1).to(torch.bfloat16)
    expected = (p.detach().float() - 0.125 * p.grad.float()).to(torch.bfloat16)
    SGD([p], lr=0.125, momentum=0.0, weight_decay=0.0).step()
    assert torch.equal(p, expected)
