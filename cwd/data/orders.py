"""In which order an epoch visits its rows: a permutation that (seed, epoch) decides.

Up to TABLE rows it is drawn whole. Beyond, a table would take gigabytes, so each place is computed when it is asked
for: a Feistel network over the smallest even number of bits that holds every row, walked along its cycle until it is
back inside the range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, the cycle-walking cipher).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

TABLE = 2**20  # rows; 8 MB of order
ROUNDS = 8


def visited(seed: int, epoch: int, count: int, places: np.ndarray) -> np.ndarray:
    """Which rows an epoch visits at some places of its order.

    Args:
        seed, epoch: 0 to 2**64 - 1. count: the number of rows. places: (n,) integers in [0, count).

    Returns:
        (n,) int64: the values of a permutation of range(count).
    """
    if count <= TABLE:
        return epoch_order(seed, epoch, count)[places]
    return _walk(np.asarray(places, dtype=np.uint64), count, _keys(seed, epoch)).astype(np.int64)


# Two: a batch may need the end of one epoch and the start of the next.
@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits the rows, as a table: (count,) int64, read-only."""
    order = _generator(seed, epoch).permutation(count)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2)
def _keys(seed: int, epoch: int) -> np.ndarray:
    return _generator(seed, epoch).integers(0, 2**64, ROUNDS, dtype=np.uint64)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    # As uint64, because a list with a key of 2**63 or more would pass through float64 and lose its low bits.
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))


def _walk(places: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Cycle walking: the network permutes 4**half >= count values, and what leaves the range goes through again."""
    half = ((count - 1).bit_length() + 1) // 2
    found = _network(places, half, keys)
    while (outside := found >= count).any():
        found[outside] = _network(found[outside], half, keys)
    return found


def _network(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """A Feistel network on 2 * half bits: a permutation whatever the round function is."""
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right, key) & mask)
    return (left << bits) | right


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014), keyed; products wrap."""
    mixed = values ^ key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
