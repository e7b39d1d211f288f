"""Which rows a batch holds."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.data.batches import evaluation_rows, inputs_and_targets, rows
from cwd.data.orders import TABLE, epoch_order, visited
from cwd.data.tokens import TokenShards
from cwd.errors import UserError


def numbered(count: int, seq_len: int, rest: int = 0) -> np.ndarray:
    """Tokens whose row r is filled with r, so that a batch tells which rows it holds."""
    return np.concatenate([np.repeat(np.arange(count), seq_len), np.full(rest, count)]).astype("<u4")


@given(
    count=st.integers(1, 30), batch_size=st.integers(1, 50), seed=st.integers(0, 2**64 - 1), epochs=st.integers(1, 3)
)
@settings(deadline=None)
def test_each_epoch_visits_every_row_once_and_batches_cross_epochs(
    count: int, batch_size: int, seed: int, epochs: int
) -> None:
    tokens = numbered(count, 4, rest=3)
    steps = -(-count * epochs // batch_size)
    batches = [rows(tokens, seed=seed, step=step, batch_size=batch_size, seq_len=4) for step in range(steps)]
    assert all(batch.shape == (batch_size, 4) and batch.dtype == np.int64 for batch in batches)
    stream = np.concatenate(batches)
    assert (stream == stream[:, :1]).all()
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count, 0]) == list(range(count))


def test_a_batch_is_the_documented_function_of_data_seed_and_step() -> None:
    """Written out independently, one sample at a time; also in any order and with any batch size."""
    tokens = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    seq_len, count, seed = 30, 33, 5

    def sample(i: int) -> np.ndarray:
        order = np.random.Generator(np.random.Philox(key=[seed, i // count])).permutation(count)
        return tokens[order[i % count] * seq_len :][:seq_len]

    for step in (9, 0, 3, 9):
        batch = rows(tokens, seed=seed, step=step, batch_size=8, seq_len=seq_len)
        assert np.array_equal(batch, [sample(step * 8 + j) for j in range(8)])
    halves = [rows(tokens, seed=seed, step=step, batch_size=4, seq_len=seq_len) for step in (18, 19)]
    assert np.array_equal(batch, np.concatenate(halves))


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1, 2**63, 2**63 + 1) for epoch in range(3)}
    assert len(orders) == 12


def test_the_order_is_what_it_was_when_results_were_first_published() -> None:
    """A numpy that draws other permutations would silently change every run."""
    assert epoch_order(0, 0, 10).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]


def test_a_batch_reads_nothing_but_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with open(path, "wb") as handle:
        handle.truncate(2**40)  # a terabyte of holes: reading it all would not end
    tokens = np.memmap(path, dtype="<u2", mode="r")
    assert rows(tokens, seed=0, step=0, batch_size=4, seq_len=2**20).sum() == 0
    assert evaluation_rows(tokens, 3, 2**20).shape == (3, 2**20)


@given(count=st.integers(1, 40), wanted=st.integers(1, 60))
def test_evaluation_rows_are_distinct_and_evenly_spread(count: int, wanted: int) -> None:
    chosen = evaluation_rows(numbered(count, 3, rest=2), wanted, 3)[:, 0]
    assert len(chosen) == min(count, wanted)
    gaps = np.diff([*chosen, count])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_every_token_is_a_target_and_the_first_is_predicted_from_id_0() -> None:
    inputs, targets = inputs_and_targets(np.array([[5, 6, 7], [8, 9, 10]]))
    assert inputs.tolist() == [[0, 5, 6], [0, 8, 9]]
    assert targets.tolist() == [[5, 6, 7], [8, 9, 10]]


def test_a_split_shorter_than_a_row_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"train split has 7 tokens.*seq_len=8"):
        rows(np.zeros(7, np.uint8), seed=0, step=0, batch_size=1, seq_len=8)
    with pytest.raises(UserError, match=r"validation split has 7 tokens.*seq_len=8"):
        evaluation_rows(np.zeros(7, np.uint8), 1, 8)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**64}, {"step": -1}, {"batch_size": 0}, {"seq_len": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        rows(np.zeros(99, np.uint8), **({"seed": 0, "step": 0, "batch_size": 1, "seq_len": 8} | wrong))


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=30)
def test_an_order_that_is_computed_place_by_place_is_a_permutation(count: int, seed: int) -> None:
    order = computed(seed, 0, count)
    assert sorted(order.tolist()) == list(range(count))
    assert computed(seed, 0, count, np.array([count - 1, 0])).tolist() == [order[-1], order[0]]


def computed(seed: int, epoch: int, count: int, places: np.ndarray | None = None) -> np.ndarray:
    """The order as it is computed for sets that are too large for a table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cwd.data.orders.TABLE", 0)
        return visited(seed, epoch, count, np.arange(count) if places is None else places)


def test_a_computed_order_is_as_even_as_a_drawn_one() -> None:
    """Where each of 24 orders of four rows is as likely, over 6,000 seeds: chi-square with 23 degrees of freedom. And
    in one long order neighbours are as far apart as in a random one, a third of the range on average.
    """
    orders = [tuple(computed(seed, seed % 3, 4)) for seed in range(6000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 250) ** 2 / 250).sum() < 49.7  # one in a thousand
    count = 100_003
    order = computed(7, 0, count)
    assert np.abs(np.diff(order)).mean() / count == pytest.approx(1 / 3, abs=0.005)
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.015
    assert (order == np.arange(count)).sum() < 10


def test_a_batch_of_hundreds_of_billions_of_tokens_needs_no_table(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with open(path, "wb") as handle:
        handle.truncate(2**39 * 4)
    tokens = np.memmap(path, dtype="<u4", mode="r")
    assert len(tokens) // 2048 > TABLE
    tracemalloc.start()
    assert rows(tokens, seed=1, step=10**5, batch_size=128, seq_len=2048).shape == (128, 2048)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_shards_are_one_sequence(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 60_000, 1000).astype("<u2")
    cuts = [0, 0, 130, 131, 131, 700, 1000]
    paths = [tmp_path / f"{i}.bin" for i in range(len(cuts) - 1)]
    for path, start, stop in zip(paths, cuts, cuts[1:], strict=False):
        path.write_bytes(whole[start:stop].tobytes())
    shards = TokenShards(paths, "<u2")
    assert len(shards) == 1000
    for start, stop in [(0, 1000), (0, 130), (129, 132), (130, 131), (690, 5000), (999, 1000), (1000, 1001), (50, 50)]:
        assert np.array_equal(shards[start:stop], whole[start:stop])
    for step in range(9):
        batch = {"seed": 3, "step": step, "batch_size": 4, "seq_len": 31}
        assert np.array_equal(rows(shards, **batch), rows(whole, **batch))
    assert np.array_equal(evaluation_rows(shards, 7, 31), evaluation_rows(whole, 7, 31))
