"""The optimizers against the paper's algorithms in float64: rules, masks, zeros, underflow."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from cwd.optim import MODES, AdamW, Muon
from cwd.optim.decay import agrees
from cwd.optim.draws import uniform
from tests import optim_reference as reference
from tests.optim_helpers import (
    DOUBLE,
    EXACT,
    HYPER,
    MATRICES,
    each_elementwise_rule,
    each_mode,
    each_rule,
    factor_of,
    gradient_of,
    make,
    normal,
    numpy64,
    one_step,
    parameters,
    train,
)


@each_mode
@each_rule
def test_thirty_float64_steps_are_the_papers_algorithm(rule, mode):
    params = parameters(rule)
    expected = [numpy64(p).copy() for p in params]
    states = [{} for _ in params]
    optimizer = make(rule, params, mode, seed=5)
    for step in range(1, 31):
        train(optimizer, params, [step])
        for i, x in enumerate(expected):
            draws = uniform(params[i].shape, (5, step, i)).numpy()
            g = numpy64(gradient_of(params[i], i, step))
            settings = {"lr": 0.05, "weight_decay": 0.7, "hyper": HYPER[rule], "draws": draws}
            expected[i] = reference.step(rule, mode, x, g, states[i], **settings)[0]
    for p, x in zip(params, expected, strict=True):
        assert_close(p.detach(), torch.as_tensor(x), **DOUBLE)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [*MATRICES, (1, 9), (9, 1)])
def test_muon_directions_are_newton_schulz_of_the_papers_momentum_sum(shape, nesterov):
    p, state, seen = torch.nn.Parameter(normal(*shape)), {}, []
    optimizer = Muon([p], nesterov=nesterov, momentum=0.8, adjust_lr_fn="none")
    optimizer.observer = lambda observation: seen.append(observation.u.clone())
    for step in range(4):
        train(optimizer, [p], [step])
        g = numpy64(gradient_of(p, 0, step))
        u = reference.muon(g, state, momentum=0.8, nesterov=nesterov, scale=False)
        # small singular values, and so their rounding errors, grow by a**5 = 485
        assert_close(seen[-1], torch.as_tensor(u), rtol=0, atol=485 * 2**-50)


def test_default_dtype_of_torch_does_not_enter_the_step():
    results = []
    for default in (torch.float32, torch.float64, torch.bfloat16):
        params = parameters("adamw", torch.float32)
        optimizer = make("adamw", params)
        torch.set_default_dtype(default)
        try:
            results.append(train(optimizer, params, range(1, 4)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert_close(results[1], results[0], **EXACT)
    assert_close(results[2], results[0], **EXACT)


# (u, x, whether cautious decays); 1e-310 is a denormal float64, 1e-44 a denormal float32
SIGNS = [
    (2.0, 4.0, True),
    (-2.0, -4.0, True),
    (2.0, -4.0, False),
    (-2.0, 4.0, False),
    (0.0, 4.0, True),
    (0.0, -4.0, True),
    (-0.0, 4.0, True),
    (-0.0, -4.0, True),
    (2.0, 0.0, True),
    (-2.0, 0.0, True),
    (2.0, -0.0, True),
    (-2.0, -0.0, True),
    (0.0, 0.0, True),
    (-0.0, 0.0, True),
    (1e-30, -1e-30, False),
    (-1e-30, 1e-30, False),
    (1e-30, 1e-30, True),
    (1e-44, -1e-44, False),
    (-1e-44, 1e-44, False),
    (1e-44, -1.0, False),
    (1e-30, -1e30, False),
    (1e30, -1e30, False),
    (1e30, 1e30, True),
]
TINY = [(1e-200, -1e-200, False), (-1e-310, 1e-310, False), (1e-310, 1e-310, True), (1e200, -1e200, False)]


@pytest.mark.parametrize(
    ("u", "x", "decays", "dtype"),
    [(*case, dtype) for case in SIGNS for dtype in (torch.float32, torch.float64)]
    + [(*case, torch.float64) for case in TINY]
    + [
        (1e-30, -1e-30, False, torch.bfloat16),
        (0.0, -1e-30, True, torch.bfloat16),
        (1e-4, -1e-4, False, torch.float16),
    ],
)
def test_only_strictly_opposite_signs_are_left_alone(u, x, decays, dtype):
    u_tensor, x_tensor = torch.tensor([u], dtype=dtype), torch.tensor([x], dtype=dtype)
    assert agrees(u_tensor, x_tensor).tolist() == [decays]
    assert factor_of("cautious", x_tensor, u_tensor, -u_tensor).tolist() == [decays]
    assert factor_of("opposite", x_tensor, u_tensor, -u_tensor).tolist() == [not decays]
    assert factor_of("gradient", x_tensor, -u_tensor, u_tensor).tolist() == [decays]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("u", "x", "after"),
    [(0.0, 4.0, 3.0), (-0.0, -4.0, -3.0), (2.0, 4.0, 2.0), (2.0, -4.0, -5.0), (2.0, 0.0, -1.0), (0.0, 0.0, 0.0)],
)
def test_a_zero_update_decays_and_an_opposed_one_does_not(u, x, after, dtype):
    assert one_step([u], [x], dtype=dtype).tolist() == [after]


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 2.0**-100), (torch.float64, 2.0**-600)])
def test_coordinates_whose_product_underflows_do_not_decay(dtype, tiny):
    u, x = torch.tensor([tiny, -tiny], dtype=dtype), torch.tensor([-tiny, tiny], dtype=dtype)
    assert (u * x).tolist() == [0.0, 0.0]  # what a test of the product would see
    assert one_step(u.tolist(), x.tolist(), dtype=dtype).tolist() == [-1.5 * tiny, 1.5 * tiny]


@pytest.mark.parametrize(
    ("u", "x", "decays"),
    [
        ([1e-30, 1e-30], [-1e-30, -2e-30], False),  # float32 products underflow to -0.0
        ([1e-44], [-1e-44], False),
        ([1e-30], [1e-30], True),
        ([1e30, 1e30], [1e30, -2e30], False),  # float32 products overflow to inf - inf
        ([1e30, 1e30], [2e30, -1e30], True),
        ([1.0, 2.0**-30], [2.0**-30, -1.0], True),  # exactly orthogonal
        ([4096.0, 1.0, -4096.0], [4096.0, -0.5, 4096.0], False),  # a float32 sum of 2**24 - 0.5 loses the half
        ([0.0, 0.0], [-1.0, 2.0], True),
    ],
)
def test_inner_product_decays_the_whole_tensor_by_the_sign_of_the_exact_sum(u, x, decays):
    u, x = torch.tensor(u), torch.tensor(x)
    assert bool(factor_of("inner_product", x, u, -u)) is decays


@each_elementwise_rule
def test_a_parameter_without_gradient_signal_decays_under_every_mode_that_looks_at_signs(rule):
    for mode in ("cautious", "gradient", "inner_product", "random", "scaled", "decoupled"):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.0]))
        p.grad = torch.zeros(3)
        make(rule, [p], mode, lr=0.5, weight_decay=0.5).step()
        assert p.tolist() == [0.75, -1.5, 0.0], mode


def mode_inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, u, g on a coarse grid, so that zeros abound."""
    return tuple((2 * normal(40, 25, seed=seed + i)).round() / 2 for i in range(3))


@pytest.mark.parametrize("seed", range(3))
def test_cautious_and_opposite_partition_the_coordinates(seed):
    x, u, g = mode_inputs(seed)
    cautious, opposite = (factor_of(m, x, u, g) for m in ("cautious", "opposite"))
    assert cautious.any()
    assert opposite.any()
    assert set(cautious.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(opposite, 1 - cautious)


@pytest.mark.parametrize("seed", range(3))
def test_scaled_has_the_mean_of_the_cautious_mask_everywhere(seed):
    x, u, g = mode_inputs(seed)
    ratio = factor_of("scaled", x, u, g)
    assert ratio.ndim == 0
    assert ratio == factor_of("cautious", x, u, g).double().mean()
    assert ratio == agrees(u, x).mean()


@each_rule
def test_weight_decay_zero_makes_all_modes_one(rule):
    def final(mode):
        params = parameters(rule)
        return train(make(rule, params, mode, weight_decay=0.0), params, range(1, 6))

    for mode in MODES:
        assert_close(final(mode), final("none"), **EXACT)


def test_masks_of_momentum_and_gradient_differ_only_where_they_disagree_in_sign():
    """|(1[m x >= 0] - 1[g x >= 0]) x| <= 1[m g <= 0] |x|: the paper's Appendix E."""
    x, m, g = mode_inputs(11)
    difference = (agrees(m, x).double() - agrees(g, x).double()).mul(x).abs()
    assert (difference > 0).any()
    assert (difference <= (m * g <= 0) * x.abs()).all()


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999), (0.5, 0.5), (0.1, 0.9)])
def test_adam_updates_are_bounded_by_c(betas):
    """|mhat| / (sqrt(vhat) + eps) <= C = sqrt((1 - beta1) / (1 - beta2)), also for the worst gradients."""
    (beta1, beta2), steps, largest = betas, 120, []
    p = torch.nn.Parameter(torch.zeros(2, 500, dtype=torch.float64))
    optimizer = AdamW([p], betas=betas, eps=1e-300)
    optimizer.observer = lambda o: largest.append(o.u.abs().amax(1))
    for step in range(steps):
        heavy_tailed = normal(500, seed=2 * step) / normal(500, seed=2 * step + 1).abs()
        p.grad = torch.stack([heavy_tailed, torch.full_like(heavy_tailed, (beta2 / beta1) ** step)])
        optimizer.step()
    assert torch.stack(largest).max() <= math.sqrt((1 - beta1) / (1 - beta2)) * (1 + 1e-12)
    # what growing gradients reach, by Cauchy-Schwarz (but for (beta1**2 / beta2)**steps): the bound was put to the test
    supremum = math.sqrt((1 - beta2**steps) / (1 - beta2) / (1 - beta1**2 / beta2)) * (1 - beta1) / (1 - beta1**steps)
    assert abs(largest[-1][1] - supremum) <= 1e-8 * supremum
