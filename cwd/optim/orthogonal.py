"""Orthogonalisation of matrices, for Muon: odd quintic polynomials of a matrix, applied one after another.

For X = U S V^T the polynomial a X + b (X X^T) X + c (X X^T)^2 X is U p(S) V^T with p(s) = a s + b s^3 + c s^5: it moves
the singular values towards 1 and leaves the singular vectors alone (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Triple = tuple[float, float, float]  # (a, b, c) of a s + b s^3 + c s^5
Coefficients = str | Sequence[float] | Sequence[Sequence[float]]

# Measured on two CPU cores without AMX, bfloat16, one thread | two, time of stacks by time one by one: 100 x 100 0.32 |
# 0.23, 256 x 256 0.89 | 0.75, 384 x 384 1.05 | 0.92. A whole step of 300 matrices of 100 x 100 takes 1.4 times
# as long in one stack of 6 MB, two threads. float32 gains less, up to about the same bytes.
MATRIX_BYTES = 2**17
STACK_BYTES = 2**20  # for each thread
ACCELERATOR_BYTES = 2**24  # not measured: enough to fill a large GPU, little beside its memory
BLOCK = 256  # rows of a block of a symmetric product. The iteration takes 0.80 to 0.94 of the time


@torch.no_grad()
def orthogonalize(matrices: Tensor, coefficients: Sequence[Triple], *, eps: float, dtype: torch.dtype | None) -> Tensor:
    """Each matrix divided by its Frobenius norm, then X <- X p(X^T X) for each (a, b, c), in order.

    A matrix comes out the same alone and in a stack, but for the order of sums. A tall matrix is multiplied
    from the right, a wide one from the left, always by a square of the smaller side: neither is transposed in memory.

    Args:
        matrices: shape (..., rows, cols), floating; not changed. Any number of batch dimensions, wide or tall.
        coefficients: one triple an iteration, from :func:`schedule`.
        eps: lower bound of the norm; a zero matrix stays zero.
        dtype: of the iteration, rounding and all; None is that of `matrices`. torch.bfloat16 is torch.optim.Muon's.

    Returns:
        A new contiguous tensor of the same shape, in the dtype of the iteration.
    """
    rows, cols = matrices.shape[-2:]
    x = torch.empty(matrices.shape, dtype=dtype or matrices.dtype, device=matrices.device).copy_(matrices)
    x.div_(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_(min=eps))
    stack = x.view(matrices.shape[:-2].numel(), rows, cols)
    count = _together(rows * cols * x.element_size(), x.device)
    if len(stack) == 1:
        return _iterate(stack[0], coefficients).view(matrices.shape)
    for piece in stack if count == 1 else stack.split(count):
        piece.copy_(_iterate(piece, coefficients))
    return x


def stacks(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> list[list[int]]:
    """Which tensors are best stacked for one call of :func:`orthogonalize`.

    Only tensors of one shape, dtype and device, and only where it is faster than one by one: small matrices, a bounded
    number of bytes to a stack. What is best alone is a list of one.

    Args:
        tensors: of shape (..., rows, cols); the batch dimensions of one tensor count as a stack.
        dtype: of the iteration; None is that of the tensors.

    Returns:
        Lists of indices into `tensors`; each index once.
    """
    alike: dict[Hashable, list[int]] = {}
    for i, tensor in enumerate(tensors):
        alike.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append(i)
    found = []
    for indices in alike.values():
        first = tensors[indices[0]]
        *batch, rows, cols = first.shape
        size = rows * cols * (dtype or first.dtype).itemsize
        count = max(1, _together(size, first.device) // max(1, math.prod(batch)))
        found += [indices[start : start + count] for start in range(0, len(indices), count)]
    return found


def schedule(coefficients: Coefficients, steps: int) -> tuple[Triple, ...]:
    """The (a, b, c) of each iteration.

    Args:
        coefficients: one triple for all iterations; or a sequence of triples, the last one repeated, those beyond
            `steps` left out; or "polar_express", see :func:`polar_express`.
        steps: number of iterations, 1 to 99.

    Raises:
        ValueError: something else; named ``ns_coefficients`` and ``ns_steps``, as Muon's arguments are.
    """
    if not (isinstance(steps, int) and 0 < steps < 100):
        raise ValueError(f"ns_steps={steps}: a whole number from 1 to 99 is needed")
    listed = polar_express() if coefficients == "polar_express" else _triples(coefficients)
    return (*listed[:steps], *listed[-1:] * (steps - len(listed)))


@cache
def polar_express() -> tuple[Triple, ...]:
    """Polar Express: for each iteration the quintic that is closest to 1 on what the last one left of [1e-3, 1].

    Amsel, Persson, Musco & Gower, arXiv 2505.16932, Algorithm 1 with the changes for finite precision of section 3.4
    and the values of the code in their appendix: lower bound 1e-3, no polynomial for an interval wider than 1 to 0.024
    (steeper ones would push some values close to 0 again), and singular values divided by 1.01 before all but the last
    polynomial, as rounding can leave them above 1.

    Returns:
        Eight triples, computed in float64. The last one, (15, -10, 3) / 8, is the limit, and is good for ever after.
    """
    cushion, safety = 0.02407327424182761, 1.01
    low, high, found = 1e-3, 1.0, []
    while low < (1 - _LIMIT) * high:
        a, b, c = _minimax(max(low, cushion * high), high)
        # with a cushion the error is not centred on [low, high]: scale, so that p(low) and p(high) are as far from 1
        centre = (_value((a, b, c), low) + _value((a, b, c), high)) / 2
        a, b, c = a / centre, b / centre, c / centre
        found.append((a / safety, b / safety**3, c / safety**5))
        low = _value((a, b, c), low)
        high = 2 - low
    return (*found, (15 / 8, -10 / 8, 3 / 8))


def _iterate(x: Tensor, coefficients: Sequence[Triple]) -> Tensor:
    """The iteration on a normalised matrix, or stack (k, rows, cols). Overwrites x, and may return it."""
    rows, cols = x.shape[-2:]
    side = min(rows, cols)
    gram = x.new_empty(*x.shape[:-2], side, side)
    polynomial, other = torch.empty_like(gram), torch.empty_like(x)
    mm, addmm = (torch.mm, torch.addmm) if x.ndim == 2 else (torch.bmm, torch.baddbmm)
    in_blocks = x.ndim == 2 and side >= 2 * BLOCK and x.device.type == "cpu"
    for a, b, c in coefficients:
        left, right = (x.mT, x) if rows > cols else (x, x.mT)
        if in_blocks:
            _symmetric(left, right, gram, beta=0, alpha=1, out=gram)
            _symmetric(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        else:
            mm(left, right, out=gram)
            addmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        addmm(x, *((x, polynomial) if rows > cols else (polynomial, x)), beta=a, out=other)
        x, other = other, x
    return x


def _symmetric(left: Tensor, right: Tensor, plus: Tensor, *, beta: float, alpha: float, out: Tensor) -> None:
    """out = beta * plus + alpha * left @ right, known to be symmetric: the blocks below the diagonal are copied."""
    for i in range(0, len(out), BLOCK):
        j = i + BLOCK
        torch.addmm(plus[i:j, i:], left[i:j], right[:, i:], beta=beta, alpha=alpha, out=out[i:j, i:])
        out[j:, i:j] = out[i:j, j:].mT


def _together(size: int, device: torch.device) -> int:
    """How many matrices of `size` bytes to put through one call."""
    if device.type != "cpu":
        return max(1, ACCELERATOR_BYTES // max(1, size))
    return STACK_BYTES * torch.get_num_threads() // max(1, size) if size <= MATRIX_BYTES else 1


def _triples(coefficients: Any) -> list[Triple]:
    try:
        rows = coefficients if isinstance(coefficients[0], Sequence) else [coefficients]
        found = [(float(a), float(b), float(c)) for a, b, c in rows]
    except (TypeError, ValueError, LookupError):
        found = []
    if not found or not all(math.isfinite(number) for triple in found for number in triple):
        allowed = "three finite numbers, a sequence of such triples, or 'polar_express' is needed"
        raise ValueError(f"ns_coefficients={coefficients!r}: {allowed}")
    return found


_LIMIT = 5e-6  # 1 - low / high; below, the system of _minimax is singular to float64, and its solution the limit


def _minimax(low: float, high: float) -> Triple:
    """The quintic a s + b s^3 + c s^5 of least max |1 - p(s)| on [low, high], by Remez exchange (the paper's Algorithm
    2).

    Its error is the same at four points, with alternating sign: the ends, and the two between where p' = 0.
    """
    s = torch.tensor([low, (3 * low + high) / 4, (low + 3 * high) / 4, high], dtype=torch.float64, device="cpu")
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64, device="cpu")
    for _ in range(20):  # converges quadratically
        a, b, c, _error = torch.linalg.solve(torch.stack([s, s**3, s**5, signs], dim=1), torch.ones_like(s)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        s[1], s[2] = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
    return a, b, c


def _value(triple: Triple, s: float) -> float:
    a, b, c = triple
    return a * s + b * s**3 + c * s**5
