"""A batch is a pure function of (data, seed, step).

The tokens of a split are cut in N = len // seq_len rows. Epoch e visits all of them in an order drawn from the
counter-based generator keyed by (seed, e) (cwd.data.orders), and sample number i of a run, counted from its first
batch, is row i % N of epoch i // N. There is no loader and so no loader state: a resumed run, another number of
processes and the other arm of a comparison see the same batches.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cwd.data.orders import visited
from cwd.errors import UserError


class Tokens(Protocol):
    """A sequence of ids: an array, or what several shards hold (cwd.data.tokens.TokenShards)."""

    def __len__(self) -> int:
        """How many ids."""

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Some of them, (stop - start,)."""


def rows(tokens: Tokens, *, seed: int, step: int, batch_size: int, seq_len: int, split: str = "train") -> np.ndarray:
    """The batch of one step. A process of many takes its slice of it.

    Args:
        tokens: (length,) unsigned integers, usually mapped from files: only the rows of the batch are read.
        seed: 0 to 2**64 - 1. step: from 0. split: what messages call `tokens`.

    Returns:
        (batch_size, seq_len) int64. A batch may cross from one epoch into the next.

    Raises:
        UserError: fewer tokens than one row, or a seed, step or batch size out of range.
    """
    count = _count(tokens, seq_len, split)
    return _picked(tokens, chosen(count, seed=seed, step=step, batch_size=batch_size), seq_len)


def chosen(count: int, *, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Which of `count` rows or images the batch of a step has, (batch_size,) int64; arguments and errors as
    :func:`rows`.
    """
    if not 0 <= seed < 2**64:
        raise UserError(f"seed must be from 0 to 2**64 - 1; got {seed}")
    if step < 0 or batch_size < 1:
        raise UserError(f"step must be at least 0 and batch_size at least 1; got {step} and {batch_size}")
    epochs, places = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), count)
    found = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        found[inside] = visited(seed, int(epoch), count, places[inside])
    return found


def evaluation_rows(tokens: Tokens, count: int, seq_len: int, split: str = "validation") -> np.ndarray:
    """A fixed set of distinct rows, evenly spaced over the split, that no seed changes; all rows when there are fewer.

    Returns:
        (min(count, N), seq_len) int64.

    Raises:
        UserError: fewer tokens than one row, or a count below one.
    """
    if count < 1:
        raise UserError(f"the number of evaluation rows must be at least 1; got {count}")
    total = _count(tokens, seq_len, split)
    count = min(count, total)
    return _picked(tokens, np.arange(count) * total // count, seq_len)


def inputs_and_targets(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's packing: every token of a row is a target, and the first is predicted from id 0.

    Args:
        rows: (B, T) integers.

    Returns:
        inputs (B, T), the row shifted right by one with id 0 first, and targets (B, T), the row itself.
    """
    inputs = np.zeros_like(rows)
    inputs[:, 1:] = rows[:, :-1]
    return inputs, rows


def _count(tokens: Tokens, seq_len: int, split: str) -> int:
    """How many rows there are; the last incomplete one is left out."""
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1; got {seq_len}")
    if len(tokens) < seq_len:
        raise UserError(
            f"the {split} split has {len(tokens)} tokens, fewer than one row of seq_len={seq_len}; "
            "give more text or a smaller seq_len"
        )
    return len(tokens) // seq_len


def _picked(tokens: Tokens, chosen: np.ndarray, seq_len: int) -> np.ndarray:
    """The rows of these numbers, (len(chosen), seq_len) int64, reading nothing else."""
    return np.stack([tokens[start : start + seq_len] for start in (chosen * seq_len).tolist()]).astype(np.int64)
