"""The random mask: a pure function of seed, step, tensor and element."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import SGD
from cwd.optim.draws import uniform
from tests.optim_helpers import (
    EXACT,
    factor_of,
    values,
)


@pytest.mark.parametrize("opposed", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_random_mask_has_the_cautious_rate(opposed):
    n = 100_000
    x = torch.ones(n)
    u = torch.where(torch.arange(n) < opposed * n, -1.0, 1.0)
    rate = 1 - opposed
    decayed = factor_of("random", x, u, u, (3, 1))
    assert set(decayed.unique().tolist()) <= {0.0, 1.0}
    assert abs(decayed.double().mean() - rate) <= 4 * math.sqrt(rate * (1 - rate) / n)  # exact at 0 and 1
    if 0 < rate < 1:  # and it does not follow the signs: the rate is the same in both halves
        for half in (decayed[u < 0], decayed[u > 0]):
            assert abs(half.double().mean() - rate) <= 4 * math.sqrt(rate * (1 - rate) / len(half))


def random_trajectory(seed: int, shift: int = 0) -> list[torch.Tensor]:
    params = [torch.nn.Parameter(torch.ones(300)) for _ in range(2 + shift)]
    optimizer = SGD(params, lr=0.5, momentum=0.0, weight_decay=0.5, decay="random", seed=seed)
    u = torch.where(torch.arange(300) % 2 == 0, -1.0, 1.0)
    steps = []
    for _ in range(3):
        before = values(params)
        for p in params:
            p.grad = u.clone()
        optimizer.step()
        # x - 0.5 u - 0.25 M x
        steps.append([(b - 0.5 * u - p.detach()) / (0.25 * b) for b, p in zip(before, params, strict=True)])
        for p in params:
            p.data.fill_(1.0)
    return [mask for step in steps for mask in step]


def test_random_masks_differ_between_steps_tensors_and_seeds_and_repeat_for_a_seed():
    masks = random_trajectory(seed=4)
    for i, mask in enumerate(masks):
        assert set(mask.tolist()) == {0.0, 1.0}
        for other in masks[:i] + random_trajectory(seed=5):
            # independent masks of rate 1/2 agree on 150 +- 8.7 of 300 coordinates
            assert abs((mask == other).sum() - 150) < 4 * 8.7
    assert_close(random_trajectory(seed=4), masks, **EXACT)


KEYS = [(0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0), (123456789, 100_000, 77), (-1, 3, 2), (2**63, 1, 0)]
N = 1 << 16


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_uniform_numbers_look_uniform(key):
    """Fixed keys, bounds of four standard deviations."""
    draws = uniform(torch.Size([N]), key)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    d = draws.double()
    assert abs(d.mean() - 0.5) < 4 * math.sqrt(1 / 12 / N)
    assert abs(d.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / N)
    high, low = (d * 256).long(), (d * 2**24).long() % 256
    for bins in (high, low):
        chi_square = ((torch.bincount(bins, minlength=256) - N / 256) ** 2 / (N / 256)).sum()
        assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)


@pytest.mark.parametrize(
    ("a", "b"),
    [((0, s, 0), (0, s + 1, 0)) for s in range(1, 6)]
    + [((0, 1, t), (0, 1, t + 1)) for t in range(5)]
    + [((s, 1, 0), (s + 1, 1, 0)) for s in range(5)]
    + [((0, 1, 2), (0, 2, 1)), ((1, 2, 0), (2, 1, 0)), ((0, 0, 1), (1, 0, 0))],
    ids=str,
)
def test_uniform_numbers_of_neighbouring_keys_are_uncorrelated(a, b):
    x, y = (uniform(torch.Size([N]), key).double() - 0.5 for key in (a, b))
    for left, right in ((x, y), (x[1:], y[:-1]), (x[:-1], y[1:]), (x[1:], x[:-1]), (x[64:], x[:-64])):
        assert abs(12 * (left * right).mean()) < 4 / math.sqrt(len(left))


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_uniform_numbers_are_a_function_of_the_key_and_the_flat_index(key):
    matrix = uniform(torch.Size([12, 50]), key)
    assert torch.equal(matrix.flatten(), uniform(torch.Size([1000]), key)[:600])
    assert torch.equal(matrix, uniform(torch.Size([12, 50]), key))


def test_uniform_numbers_do_not_touch_or_follow_torchs_generator():
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), uniform(torch.Size([9]), (0, 1, 0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(uniform(torch.Size([9]), (0, 1, 0)), first)


def test_uniform_numbers_never_change_between_versions():
    """What a run drew, it draws again when it is repeated years later."""
    golden = {  # from murmur3's and splitmix64's definitions in Python integers, in units of 2**-24
        (0, 1, 0): [14946744, 250969, 16069526, 1822649],
        (7, 300, 12): [11831427, 13995998, 2273997, 16590412],
    }
    for key, numbers in golden.items():
        assert (uniform(torch.Size([4]), key) * 2.0**24).tolist() == numbers
