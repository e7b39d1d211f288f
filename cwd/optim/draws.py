"""Random numbers without a generator: each is a pure function of (seed, step, tensor, element).

So a resumed, resharded or differently batched run draws the same ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Key = tuple[int, int, int]
Words = tuple[int, int] | Tensor  # two 32-bit words, or an int64 tensor of them
Elements = int | Tensor  # number of the first element of a tensor's part, or an int64 vector with the number of each


def uniform(shape: torch.Size, key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), float32, one for each element of a tensor.

    Counter based, with murmur3's 32-bit finaliser.

    Args:
        shape: the tensor's whole shape; at most 2**32 elements.
        key: (seed, step, index of the tensor).
    """
    return draw(shape, words_of(key), 0, device)


def words_of(key: Key) -> tuple[int, int]:
    """The two 32-bit words that a key comes down to."""
    word = 0
    for part in key:
        word = _splitmix64(word ^ (part & _MASK64))
    return word & _MASK32, word >> 32


def draw(shape: torch.Size, words: Words, elements: Elements, device: torch.device | str) -> Tensor:
    """:func:`uniform` for a part of a tensor, of shape `shape`."""
    return (_bits(shape, words, elements, device) >> 8).to(torch.float32).mul_(2.0**-24).view(shape)


def round_stochastically(value: Tensor, words: Words, elements: Elements) -> Tensor:
    """float32 to bfloat16, up or down with probability in proportion to the distance; exact values stay.

    The sixteen bits that bfloat16 lacks are compared with sixteen random ones, by adding them and cutting off. What is
    not finite is rounded as usual.
    """
    noise = (_bits(value.shape, words, elements, value.device) & 0xFFFF).to(torch.int32)
    rounded = ((value.contiguous().view(torch.int32).reshape(-1) + noise) & -0x10000).view(torch.float32)
    return torch.where(value.isfinite(), rounded.view(value.shape), value).to(torch.bfloat16)


def _bits(shape: torch.Size, words: Words, elements: Elements, device: torch.device | str) -> Tensor:
    """32 random bits an element, in an int64 vector."""
    if isinstance(elements, Tensor) and elements.dim() == 1:
        index = elements
    else:
        count = math.prod(shape)  # shape.numel() would turn a graph's symbolic sizes into numbers
        index = torch.arange(count, device=device, dtype=torch.int64) + elements
    return _mix32(_mix32(index ^ words[0]) ^ words[1])


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
