"""Orthogonalisation against singular value decompositions in float64, and against torch's in bfloat16."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.optim._muon import _zeropower_via_newtonschulz
from torch.testing import assert_close

from cwd.optim import Muon, orthogonal
from cwd.optim.orthogonal import BLOCK, STACK_BYTES, orthogonalize, polar_express, schedule, stacks
from tests.optim_helpers import normal

JORDAN = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
# Implementation 1 of arXiv 2505.16932, appendix A, before the safety factor of 1.01
PUBLISHED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
SHAPES = [(8, 5), (5, 8), (7, 7), (1, 9), (9, 1), (1, 1), (64, 200)]
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_coefficients = pytest.mark.parametrize("coefficients", [JORDAN, "polar_express"], ids=["jordan", "polar_express"])


def polynomial(s: np.ndarray, triples) -> np.ndarray:
    """The singular values after the iteration, one by one."""
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return s


def by_singular_values(matrix: torch.Tensor, triples) -> torch.Tensor:
    """U p(S / |S|) V^T in float64 numpy, for each matrix."""
    left, s, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    s = polynomial(s / np.sqrt((s**2).sum(-1, keepdims=True)), triples)
    return torch.as_tensor((left * s[..., None, :]) @ right)


def growth(triples) -> float:
    """How much the iteration magnifies an error of the input at most: the product of the slopes at 0."""
    return math.prod(a for a, _, _ in triples)


@each_coefficients
@each_shape
def test_float64_is_the_polynomial_of_the_singular_values(shape, coefficients):
    triples = schedule(coefficients, 5)
    matrix = normal(*shape, seed=1)
    before = matrix.clone()
    result = orthogonalize(matrix, triples, eps=EPS, dtype=None)
    assert_close(result, by_singular_values(matrix, triples), rtol=0, atol=growth(triples) * 2**-50)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", [(32, 40), (75, 37), (49, 49)])
def test_matrices_multiplied_in_blocks_are_no_exception(shape, monkeypatch):
    monkeypatch.setattr(orthogonal, "BLOCK", 16)
    triples = schedule(JORDAN, 4)
    matrix = normal(*shape, seed=2)
    result = orthogonalize(matrix, triples, eps=EPS, dtype=None)
    assert_close(result, by_singular_values(matrix, triples), rtol=0, atol=growth(triples) * 2**-50)


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 3, 8, 5), (1, 6, 6), (2, 150, 140), (20, 90, 90), (0, 4, 3)])
def test_a_stack_is_its_matrices_one_by_one(shape):
    triples = schedule(JORDAN, 4)
    stack = normal(*shape, seed=3)
    result = orthogonalize(stack, triples, eps=EPS, dtype=None)
    assert result.shape == stack.shape
    for i in np.ndindex(*shape[:-2]):
        assert_close(result[i], by_singular_values(stack[i], triples), rtol=0, atol=growth(triples) * 2**-48)


def test_a_batch_and_a_matrix_that_are_not_contiguous():
    triples = schedule(JORDAN, 5)
    stack = normal(9, 4, 6, seed=4).permute(1, 2, 0)[:, ::2]
    result = orthogonalize(stack, triples, eps=EPS, dtype=None)
    assert_close(result, by_singular_values(stack, triples), rtol=0, atol=growth(triples) * 2**-50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zero_stays_zero_beside_others_and_scale_does_not_matter(dtype):
    triples = schedule(JORDAN, 5)
    matrix = normal(6, 4, seed=5).float()
    stack = torch.stack([matrix, torch.zeros_like(matrix), 2.0**30 * matrix, 2.0**-12 * matrix])
    one, zero, large, small = orthogonalize(stack, triples, eps=EPS, dtype=dtype)
    assert not zero.any()
    assert one.dtype == dtype
    assert torch.equal(one, large)
    assert torch.equal(one, small)
    assert one.norm() > 1


def test_a_matrix_below_eps_is_divided_by_eps():
    matrix = normal(4, 4, seed=6)
    matrix *= 1e-12 / matrix.norm()
    result = orthogonalize(matrix, schedule(JORDAN, 1), eps=EPS, dtype=None)
    assert_close(result, JORDAN[0] * matrix / EPS, rtol=1e-8, atol=0)


@pytest.mark.parametrize("shape", [(100, 100), (60, 200), (200, 60), (2 * BLOCK, 520)])
def test_bfloat16_is_as_exact_as_torchs_alone_and_in_a_stack(shape):
    triples = schedule(JORDAN, 5)
    matrix = normal(*shape, seed=7).float()
    expected = by_singular_values(matrix, triples)
    theirs = (_zeropower_via_newtonschulz(matrix, JORDAN, 5, EPS).double() - expected).norm()
    for result in (
        orthogonalize(matrix, triples, eps=EPS, dtype=torch.bfloat16),
        orthogonalize(matrix.repeat(3, 1, 1), triples, eps=EPS, dtype=torch.bfloat16)[2],
    ):
        assert result.dtype == torch.bfloat16
        assert (result.double() - expected).norm() < 1.1 * theirs
    wide = orthogonalize(matrix, triples, eps=EPS, dtype=torch.float32)
    assert (wide.double() - expected).norm() < 1e-3 * theirs


def test_polar_express_coefficients_are_the_published_ones():
    for found, published in zip(polar_express(), PUBLISHED, strict=True):
        safety = 1.0 if published == PUBLISHED[-1] else 1.01
        unsafe = [value * safety**power for value, power in zip(found, (1, 3, 5), strict=True)]
        # the last but one comes from an interval of 0.0013: float64 leaves 11 digits of it
        assert_close(unsafe, list(published), rtol=1e-10, atol=0)


def test_polar_express_takes_singular_values_from_a_thousandth_to_one():
    s = np.geomspace(1e-3, 1, 100_001)
    errors = [np.abs(1 - polynomial(s, schedule("polar_express", steps))).max() for steps in range(1, 13)]
    assert all(after < before for before, after in itertools.pairwise(errors[:8]))
    assert errors[4] < 0.16  # the paper's five steps
    assert max(errors[7:]) < 1e-14


def test_polar_express_converges_to_the_polar_factor_also_in_bfloat16():
    left, s, right = torch.linalg.svd(normal(40, 24, seed=8), full_matrices=False)
    s = torch.logspace(-2, 0, 24, dtype=torch.float64)
    matrix, polar = (left * s) @ right, left @ right
    result = orthogonalize(matrix, schedule("polar_express", 9), eps=EPS, dtype=None)
    assert_close(result, polar, rtol=0, atol=1e-11)
    rounded = orthogonalize(matrix, schedule("polar_express", 9), eps=EPS, dtype=torch.bfloat16).double()
    # what the last step rounds: the square and the result, near 1, and the polynomial, near -0.875; by 2**-9 each
    assert (torch.linalg.svdvals(rounded) - 1).abs().max() < 4 * 2**-9


def test_the_classical_coefficients_move_singular_values_towards_one_and_keep_singular_vectors():
    matrix = normal(8, 5, seed=3)
    left, s, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix, schedule(JORDAN, 5), eps=EPS, dtype=None)
    diagonal = left.mT @ result @ right.mT
    assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=0, atol=1e-12)
    assert s.max() / s.min() > 2
    # the quintic's attractor; https://kellerjordan.github.io/posts/muon gives [0.7, 1.3] as "in practice"
    assert diagonal.diagonal().min() > 0.6
    assert diagonal.diagonal().max() < 1.3


@pytest.mark.parametrize(
    ("coefficients", "steps", "expected"),
    [
        (JORDAN, 3, (JORDAN, JORDAN, JORDAN)),
        (list(JORDAN), 1, (JORDAN,)),
        ([(1, 2, 3), [4, 5, 6]], 4, ((1, 2, 3), (4, 5, 6), (4, 5, 6), (4, 5, 6))),
        (((1, 2, 3), (4, 5, 6)), 1, ((1, 2, 3),)),
        ([(1, 2, 3)] * 3, 3, ((1, 2, 3),) * 3),
    ],
)
def test_a_schedule_repeats_or_leaves_out(coefficients, steps, expected):
    assert schedule(coefficients, steps) == expected


@pytest.mark.parametrize(
    "coefficients", [(1.0, 2.0), (1, 2, 3, 4), [], [(1, 2)], [(1, 2, 3), 4], 3, None, "polar", (1.0, math.nan, 3.0), {}]
)
def test_refused_coefficients_are_named_with_what_is_allowed(coefficients):
    with pytest.raises(ValueError) as error:
        schedule(coefficients, 5)
    assert f"ns_coefficients={coefficients!r}" in str(error.value)
    assert "three finite numbers" in str(error.value)
    assert "polar_express" in str(error.value)


@pytest.mark.parametrize("steps", [0, 100, -1, 2.5, None])
def test_refused_steps_are_named_with_what_is_allowed(steps):
    with pytest.raises(ValueError, match=f"ns_steps={steps}: .* 1 to 99"):
        schedule("polar_express", steps)


def test_stacks_hold_like_tensors_once_each_and_a_bounded_number_of_bytes():
    shapes = [(100, 100), (64, 32), (1024, 512), (4, 50, 50)] * 60
    dtypes = [torch.float32, torch.float64, torch.float32] * 80
    tensors = [torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    found = stacks(tensors, torch.bfloat16)
    assert sorted(i for stack in found for i in stack) == list(range(len(tensors)))
    for stack in found:
        first = tensors[stack[0]]
        assert all((tensors[i].shape, tensors[i].dtype) == (first.shape, first.dtype) for i in stack)
        if first.shape == (1024, 512):
            assert len(stack) == 1  # 2**20 bytes in bfloat16: larger than MATRIX_BYTES
        assert sum(2 * tensors[i].numel() for i in stack) <= STACK_BYTES * torch.get_num_threads()
    assert len(found) == 60 + 3 * 2  # the large ones, and a stack for each of three shapes and two dtypes


def test_stacks_are_smaller_where_the_iteration_is_wider():
    tensors = [torch.empty(100, 100)] * (100 * torch.get_num_threads())
    assert max(map(len, stacks(tensors, None))) == max(map(len, stacks(tensors, torch.bfloat16))) // 2


@pytest.mark.parametrize("coefficients", ["polar_express", [(2, -1.5, 0.5), JORDAN]])
def test_muon_takes_what_a_schedule_takes(coefficients):
    p, seen = torch.nn.Parameter(normal(6, 9, seed=9)), []
    p.grad = normal(6, 9, seed=10)
    optimizer = Muon([p], ns_coefficients=coefficients, ns_steps=4, adjust_lr_fn="none")
    optimizer.observer = lambda observation: seen.append(observation.u.clone())
    optimizer.step()
    triples = schedule(coefficients, 4)
    assert_close(seen[0], by_singular_values(p.grad, triples), rtol=0, atol=growth(triples) * 2**-50)
    with pytest.raises(ValueError, match="ns_coefficients='polar'"):
        Muon([p], ns_coefficients="polar")
