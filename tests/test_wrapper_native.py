"""CautiousWeightDecay does what the native optimizers do, in one buffer more, around any optimizer."""

from __future__ import annotations

from functools import partial

import lion_pytorch
import pytest
import torch
from torch.testing import assert_close

from cwd.optim import MODES, SGD, AdamW, Lion
from cwd.optim import wrapper as wrapper_module
from cwd.optim.decay import Mode
from cwd.optim.draws import words_of
from cwd.optim.wrapper import CautiousWeightDecay
from tests.optim_helpers import factor_of
from tests.wrapper_helpers import (
    BETAS,
    EXACT,
    SHAPES,
    TOLERANCE,
    Odd,
    each_mode,
    fused_adamw,
    moved,
    normal,
    parameters,
    plain_adamw,
    plain_sgd,
    through_torch_file,
    train,
    values,
    wrapped,
)

# name: (inner optimizer, the native one)
PAIRS = {
    "adamw fused": (fused_adamw, partial(AdamW, betas=BETAS)),
    "adamw foreach": (partial(fused_adamw, fused=False, foreach=True), partial(AdamW, betas=BETAS)),
    "adamw single": (plain_adamw, partial(AdamW, betas=BETAS)),
    "adamw tensor lr": (
        lambda params, lr: fused_adamw(params, lr=torch.tensor(lr, dtype=torch.float64)),
        partial(AdamW, betas=BETAS),
    ),
    "sgd one-element lr": (
        lambda params, lr: plain_sgd(params, lr=torch.tensor([lr], dtype=torch.float64)),
        partial(SGD, momentum=0.9, dampening=0.0),
    ),
    "adamw maximize": (partial(plain_adamw, maximize=True), partial(AdamW, betas=BETAS, maximize=True)),
    "sgd": (plain_sgd, partial(SGD, momentum=0.9, dampening=0.0)),
    "lion": (partial(lion_pytorch.Lion, weight_decay=0.0), Lion),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_mode
@pytest.mark.parametrize("name", PAIRS)
def test_twenty_steps_are_the_native_optimizers(name, mode, dtype):
    inner, native = PAIRS[name]
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer = wrapped(ours, mode, inner, seed=5)
    reference = native(theirs, lr=0.05, weight_decay=0.7, decay=mode, seed=5)
    assert_close(train(optimizer, ours, range(20)), train(reference, theirs, range(20)), **TOLERANCE[dtype])


def test_a_mode_sees_x_before_the_step_u_at_its_size_and_g(monkeypatch):
    seen = []
    spy = Mode(lambda *arguments: seen.append([t.clone() for t in arguments[:3]]) or 1.0)
    monkeypatch.setitem(MODES, "cautious", spy)
    for lr, u in ((0.25, [3.0, -2.0]), (0.0, [0.0, 0.0]), (torch.tensor(0.0), [0.0, 0.0])):
        p = torch.tensor([4.0, 1.0])  # no Parameter, and needs no gradient, but has one
        p.grad = torch.tensor([3.0, -2.0])
        seen.clear()
        CautiousWeightDecay(torch.optim.SGD([p], lr=lr), 0.5).step()
        assert [t.tolist() for t in seen[0]] == [[4.0, 1.0], u, [3.0, -2.0]]
    assert p.tolist() == [4.0, 1.0]


@each_mode
def test_pieces_and_wholes_are_the_same(mode, monkeypatch):
    whole, split = parameters(torch.float32), parameters(torch.float32)
    expected = train(wrapped(whole, mode), whole, range(5))
    monkeypatch.setattr(wrapper_module, "PIECE", 4)  # 24 = 6 pieces; 7 and 30 do not divide
    assert_close(train(wrapped(split, mode), split, range(5)), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("u", "x", "after"),
    [(0.0, 4.0, 3.0), (-0.0, -4.0, -3.0), (2.0, 4.0, 2.0), (2.0, -4.0, -5.0), (2.0, 0.0, -1.0), (0.0, 0.0, 0.0)],
)
def test_a_zero_update_decays_and_an_opposed_one_does_not(u, x, after, dtype):
    assert moved([u], [x], dtype=dtype) == [after]


def test_coordinates_whose_product_underflows_do_not_decay():
    tiny = 2.0**-100
    assert moved([tiny, -tiny], [-tiny, tiny]) == [-1.5 * tiny, 1.5 * tiny]


def test_the_limitation_an_update_that_leaves_no_trace_in_x_decays():
    assert moved([-(2.0**-24)], [1.0]) == [0.75]  # lr * u is a quarter of a unit in the last place
    p = torch.nn.Parameter(torch.ones(1))
    p.grad = torch.tensor([-(2.0**-24)])
    SGD([p], lr=0.5, momentum=0.0, weight_decay=0.5).step()
    assert p.tolist() == [1.0]  # the native one sees u


@each_mode
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_from_the_two_values_of_x(dtype, mode):
    params, bare = parameters(dtype), parameters(dtype)
    optimizer, alone = wrapped(params, mode, plain_sgd, seed=5), plain_sgd(bare, lr=0.05)
    for step in range(1, 8):
        before = values(params)
        train(alone, bare, [step])  # from the same x, so that it shows x after the inner step
        train(optimizer, params, [step])
        for number, (p, q, x) in enumerate(zip(params, bare, before, strict=True)):
            wide = x.float()
            u = (wide - q.detach().float()) / 0.05
            if mode == "spd":  # decays the value after the inner step, and not by lr
                share = factor_of(mode, wide, u, p.grad.float(), lr=0.05)
                expected = q.detach().float() * (1 - share * 0.7)
                assert_close(p.detach(), expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
                q.data.copy_(p.detach())
                continue
            factor = factor_of(mode, wide, u, p.grad.float(), words_of((5, step, number)), 0.05)
            expected = q.detach().float() - factor * wide * (0.05 * 0.7)
            assert_close(p.detach(), expected.to(dtype), **EXACT)
            q.data.copy_(p.detach())


def test_strided_complex_zero_dimensional_and_empty_parameters():
    base = 0.3 * normal(6, 4, dtype=torch.float32)
    column_major, contiguous = torch.nn.Parameter(base.t().contiguous().t()), torch.nn.Parameter(base.clone())
    assert not column_major.is_contiguous()
    results = [train(wrapped([p], "cautious", plain_sgd), [p], range(5)) for p in (column_major, contiguous)]
    assert_close(*results, **EXACT)
    z = torch.nn.Parameter(torch.tensor([4 - 4j]))
    z.grad = torch.tensor([2 + 2j])
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    empty.grad = torch.zeros(0, 3)
    CautiousWeightDecay(torch.optim.SGD([z, empty], lr=0.5), 0.5).step()
    assert z.tolist() == [2 - 5j]  # the real part agrees and decays, the imaginary one is opposed


def peak_bytes(function) -> int:
    """The most bytes that the CPU allocator had out at once while `function` ran, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


BIG = ((4096, 1024), (512, 1024), (4096, 1024))
TENSOR, MODEL, PIECE = 4 * 2**22, 4 * 2**19 * 17, 4 * wrapper_module.PIECE  # bytes


def test_the_measure_of_memory_sees_what_is_kept_and_what_is_dropped():
    assert peak_bytes(lambda: [torch.empty(2**22) for _ in range(3)]) >= 3 * TENSOR
    assert TENSOR <= peak_bytes(lambda: [torch.empty(2**22) is None for _ in range(3)]) < 2 * TENSOR


@each_mode
def test_a_step_costs_one_copy_of_the_parameters_once_and_small_temporaries(mode):
    params = parameters(torch.float32, BIG)
    optimizer = wrapped(params, mode, partial(torch.optim.SGD, foreach=False))
    for i, p in enumerate(params):
        p.grad = normal(*p.shape, seed=i, dtype=torch.float32)
    # u, a sign or two and a bool mask; sums also float64 copies, and the draws 64-bit words: all of a piece
    bound = {"none": 0, "random": 16 * PIECE}.get(mode, 9 * PIECE) + 2**12
    assert peak_bytes(optimizer.step) <= (0 if mode == "none" else MODEL) + bound
    kept = [x.data_ptr() for x in optimizer._copies.values()]
    assert peak_bytes(optimizer.step) <= bound
    assert [x.data_ptr() for x in optimizer._copies.values()] == kept
    assert sum(x.nbytes for x in optimizer._copies.values()) == (0 if mode == "none" else MODEL)
    assert bound < TENSOR  # so a temporary of one large tensor would have been seen


def test_the_copies_follow_parameters_that_change_shape_dtype_strides_or_decay(monkeypatch):
    monkeypatch.setattr(wrapper_module, "PIECE", 2)
    params = parameters(torch.float32, (*SHAPES, SHAPES[3]))
    strided, plain = normal(5, 2, 3).transpose(0, 2).float(), normal(3, 2, 5).float()
    params[3].data = strided.clone()
    optimizer = wrapped(params)
    train(optimizer, params, [1])
    params[0].data, params[1].data = normal(2, 3), params[1].data.double()
    params[3].data, params[4].data = plain, strided
    optimizer.state.clear()
    train(optimizer, params, [2])
    assert [(x.shape, x.dtype) for x in optimizer._copies.values()] == [(p.shape, p.dtype) for p in params]
    optimizer.param_groups[0]["cwd_weight_decay"] = 0.0
    train(optimizer, params, [4])
    assert optimizer._copies == {}


def test_an_optimizer_with_odd_state_keyword_arguments_and_consumed_gradients():
    params = parameters()
    optimizer = wrapped(params, "cautious", Odd)
    expected, history = values(params), [0.0 for _ in params]
    for step in range(1, 6):
        for i, p in enumerate(params):
            p.grad = normal(*p.shape, seed=10 * step + i)
            history[i] = history[i] + p.grad
            u = 2.0 * history[i].sign()
            expected[i] = expected[i] - 0.05 * (u + 0.7 * (u.sign() * expected[i].sign() >= 0).double() * expected[i])
        assert optimizer.step(scale=2.0) == step
    assert_close(values(params), expected, **TOLERANCE[torch.float64])
    resumed = [torch.nn.Parameter(v) for v in values(params)]
    again = wrapped(resumed, "cautious", Odd)
    again.load_state_dict(through_torch_file(optimizer.state_dict()))
    assert again.steps_taken == 5
    assert_close(train(again, resumed, [6]), train(optimizer, params, [6]), **EXACT)


def test_gradient_mode_sees_a_gradient_that_the_inner_step_consumes():
    p = torch.nn.Parameter(torch.tensor([4.0, 4.0]))
    optimizer = CautiousWeightDecay(Odd([p], lr=0.5), 0.5, "gradient")
    p.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert p.tolist() == [2.5, 4.5]
