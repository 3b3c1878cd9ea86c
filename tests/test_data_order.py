"""The sample order is a permutation, local to its windows, and a pure function of its arguments."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fqgan.data.order import SampleStream, epoch_order

BLOCKS = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@given(BLOCKS, st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 20))
def test_every_sample_once(blocks: list[int], seed: int, epoch: int, window: int) -> None:
    order = epoch_order(blocks, seed, epoch, window)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(sum(blocks)))
    np.testing.assert_array_equal(order, epoch_order(tuple(blocks), seed, epoch, window))


@given(BLOCKS, st.integers(0, 100), st.integers(1, 4))
def test_a_window_of_blocks_is_all_a_reader_needs(blocks: list[int], seed: int, window: int) -> None:
    owner = np.repeat(np.arange(len(blocks)), blocks)
    visited = owner[epoch_order(blocks, seed, 0, window)]
    first = {block: int(np.argmax(visited == block)) for block in range(len(blocks))}
    by_visit = sorted(first, key=first.__getitem__)
    for i in range(0, len(by_visit), window):
        group = by_visit[i : i + window]
        start = sum(blocks[block] for block in by_visit[:i])
        assert set(visited[start : start + sum(blocks[block] for block in group)]) == set(group)


def test_seed_and_epoch_change_the_order() -> None:
    orders = {tuple(epoch_order([50], seed, epoch, 1)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_a_single_block_is_shuffled_uniformly() -> None:
    """Each of 5 samples comes first in about a fifth of 2000 epochs (five standard deviations is 0.045)."""
    firsts = [epoch_order([5], 0, epoch, 16)[0] for epoch in range(2000)]
    np.testing.assert_allclose(np.bincount(firsts, minlength=5) / 2000, 0.2, atol=0.045)


def test_blocks_are_shuffled_too() -> None:
    firsts = {epoch_order([1] * 6, 0, epoch, 1)[0] for epoch in range(100)}
    assert firsts == set(range(6))


def test_stream_is_the_concatenation_of_epochs() -> None:
    blocks, stream = [3, 4, 2], SampleStream([3, 4, 2], seed=5, window=2)
    expected = [(epoch, int(index)) for epoch in range(4) for index in epoch_order(blocks, 5, epoch, 2)]
    assert stream.take(0, 36) == expected
    assert stream.take(7, 21) == expected[7:21]
    assert stream[30] == expected[30]
    assert stream[2] == expected[2]


def test_stream_keeps_no_more_than_two_epochs() -> None:
    stream = SampleStream([10], seed=0, window=1)
    stream.take(0, 95)
    assert len(stream._orders) <= 2
