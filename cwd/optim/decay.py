"""Decay modes: which coordinates decay, and how much of the decay they get.

A mode is a plain function ``M(x, u, g, words)`` on one tensor that returns the factor of the decay term
``weight_decay * M * x``: a boolean tensor, a 0-D tensor or a number. ``x`` is the value before the step, ``u`` the
rule's final update, ``g`` the gradient. ``words`` seed the modes that draw.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Factor = Tensor | float
Key = tuple[int, int, int]
Words = tuple[int, int] | Tensor  # two 32-bit words, or an int64 tensor of them


def agrees(u: Tensor, x: Tensor) -> Tensor:
    """True where u and x do not have strictly opposite signs: the paper's 1[u * x >= 0] (section 3, equation 1), as a
    bool tensor.

    Signs are compared, not the product: 1e-30 * -1e-30 underflows to -0.0, which is ">= 0". A zero u or x agrees.
    """
    return u.sign().mul_(x.sign()) >= 0


def agreement_ratio(u: Tensor, x: Tensor) -> Tensor:
    """The fraction of coordinates on which cautious decay acts, a 0-D tensor of x's dtype."""
    return agrees(u, x).sum().to(x.dtype) / x.numel()


def none(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """No decay."""
    return 0.0


def decoupled(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """Decay every coordinate (Loshchilov & Hutter 2019)."""
    return 1.0


def cautious(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """Decay where the update agrees in sign with the parameter (the paper's method, Algorithm 1)."""
    return agrees(u, x)


def gradient(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """Decay where the gradient, instead of the update, agrees in sign with the parameter (Table 2)."""
    return agrees(g, x)


def random(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """Decay a random set of coordinates, redrawn each step, with the ratio that cautious would have had (Table 2)."""
    return _draw(x.shape, words, x.device) < agreement_ratio(u, x)


def inner_product(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """Decay the whole tensor if <u, x> >= 0, else none of it (Table 5). Summed in float64, where float32 products are
    exact.
    """
    return torch.dot(u.reshape(-1).double(), x.reshape(-1).double()) >= 0


def opposite(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """Decay exactly where cautious does not: a control that the paper lacks."""
    return ~agrees(u, x)


def scaled(x: Tensor, u: Tensor, g: Tensor, words: Words) -> Factor:
    """Decay every coordinate, by the cautious ratio: as much decay, without the choice. A control that the paper
    lacks.
    """
    return agreement_ratio(u, x)


MODES: dict[str, Callable[[Tensor, Tensor, Tensor, Words], Factor]] = {
    "none": none,
    "decoupled": decoupled,
    "cautious": cautious,
    "random": random,
    "gradient": gradient,
    "inner_product": inner_product,
    "opposite": opposite,
    "scaled": scaled,
}
PER_TENSOR = frozenset({"random", "inner_product", "scaled"})  # these look at a tensor as a whole


def uniform(shape: torch.Size, key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), float32, each a pure function of (seed, step, tensor, element).

    Counter based, with murmur3's 32-bit finaliser: no generator state exists, so a resumed or resharded run draws the
    same.

    Args:
        shape: the tensor's whole shape; at most 2**32 elements.
        key: (seed, step, index of the tensor).
    """
    return _draw(shape, words_of(key), device)


def words_of(key: Key) -> tuple[int, int]:
    """The two 32-bit words that a key comes down to."""
    word = 0
    for part in key:
        word = _splitmix64(word ^ (part & _MASK64))
    return word & _MASK32, word >> 32


def _draw(shape: torch.Size, words: Words, device: torch.device | str) -> Tensor:
    index = torch.arange(shape.numel(), device=device, dtype=torch.int64)
    bits = _mix32(_mix32(index ^ words[0]) ^ words[1])
    return (bits >> 8).to(torch.float32).mul_(2.0**-24).view(shape)


_MASK32, _MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def _mix32(bits: Tensor) -> Tensor:
    # 32-bit words held in int64: the product may wrap, its low 32 bits are right all the same.
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x85EBCA6B) & _MASK32
    bits = bits ^ (bits >> 13)
    bits = (bits * 0xC2B2AE35) & _MASK32
    return bits ^ (bits >> 16)


def _splitmix64(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & _MASK64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK64
    return word ^ (word >> 31)
