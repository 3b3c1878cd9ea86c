"""Lanes: ranks read blocks of their own, in an order that does not depend on their number."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise import Noise, batches
from test_data_images import counted_row_groups, write_parquet

from fqgan.config import DataConfig
from fqgan.data.order import SampleStream, epoch_order
from fqgan.data.sources import open_source

BLOCKS = st.lists(st.integers(1, 12), min_size=1, max_size=30)
LANES = st.integers(1, 9)


@given(BLOCKS, st.integers(0, 100), st.integers(0, 9), st.integers(1, 20), LANES)
def test_every_sample_once(blocks: list[int], seed: int, epoch: int, window: int, lanes: int) -> None:
    order = epoch_order(blocks, seed, epoch, window, lanes)
    assert sorted(order) == list(range(sum(blocks)))
    np.testing.assert_array_equal(order, epoch_order(blocks, seed, epoch, window, lanes))


@given(BLOCKS, st.integers(0, 9), st.integers(1, 20), LANES)
def test_lanes_share_no_blocks_but_on_their_borders(blocks: list[int], epoch: int, window: int, lanes: int) -> None:
    """Position p over all epochs belongs to lane p mod lanes, though epochs are no multiples of the lanes."""
    count = sum(blocks)
    owner = np.repeat(np.arange(len(blocks)), blocks)
    positions = np.arange(epoch * count, (epoch + 1) * count)
    order = epoch_order(blocks, 0, epoch, window, lanes)
    read = [set(owner[order[positions % lanes == lane]]) for lane in range(lanes)]
    assert sum(map(len, read)) <= len(blocks) + lanes - 1
    lengths = [(positions % lanes == lane).sum() for lane in range(lanes)]
    assert max(lengths) - min(lengths) <= 1


@given(BLOCKS, st.integers(0, 9), st.integers(1, 8), st.integers(1, 5))
def test_a_lane_needs_few_blocks_at_hand(blocks: list[int], epoch: int, window: int, lanes: int) -> None:
    """Within a lane, the blocks come in groups of window / lanes: a later group begins when the one before is done."""
    count, size = sum(blocks), math.ceil(window / lanes)
    owner = np.repeat(np.arange(len(blocks)), blocks)
    order = owner[epoch_order(blocks, 0, epoch, window, lanes)]
    for lane in range(lanes):
        visited = order[(lane - epoch * count) % lanes :: lanes].tolist()
        last = {block: i for i, block in enumerate(visited)}
        first = {block: visited.index(block) for block in last}
        at_hand = [sum(first[block] <= i <= last[block] for block in last) for i in range(len(visited))]
        assert max(at_hand, default=0) <= size


def test_the_order_of_one_lane_is_as_it_was() -> None:
    """Pinned: runs of the first version go on."""
    assert epoch_order([3, 4, 2, 5], 7, 3, 2).tolist() == [3, 4, 6, 5, 8, 7, 2, 1, 12, 13, 9, 0, 11, 10]


def test_blocks_and_samples_are_shuffled_anew_in_every_epoch() -> None:
    stream = SampleStream([5] * 20, 0, 4, lanes=4)
    epochs = [[index for _, index in stream.take(100 * e, 100 * e + 100)] for e in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    blocks = [{index // 5 for index in epoch[::4]} for epoch in epochs]
    assert blocks[0] != blocks[1] != blocks[2], "a lane's blocks change"


def micro_batches(world: int, micro: int, steps: int = 5, workers: int = 0, **options: Any) -> torch.Tensor:
    """Images of `steps` steps in the order of the stream, put together from the ranks' strides."""
    config = DataConfig(workers=workers, window=4, lanes=4)
    source = Noise([3] * 7 + [2])
    ranks = [
        batches(source, steps, config, micro_batch=micro, rank=rank, world=world, **options) for rank in range(world)
    ]
    return torch.cat(
        [torch.stack([images for images, _ in turn], 1).flatten(0, 1) for turn in zip(*ranks, strict=True)]
    )


def test_any_number_of_ranks_and_workers_covers_the_same_stream() -> None:
    whole = micro_batches(1, 12)
    for world, micro in ((1, 3), (2, 6), (2, 2), (3, 2), (4, 3), (12, 1)):
        assert torch.equal(micro_batches(world, micro), whole), (world, micro)
    assert torch.equal(micro_batches(2, 3, workers=2), whole)
    assert torch.equal(micro_batches(2, 3, steps=2, start_step=3), whole[36:])


@pytest.mark.parametrize(("lanes", "world", "shared"), [(4, 4, 3), (8, 4, 3), (4, 2, 3), (6, 4, 100)])
def test_ranks_read_blocks_of_their_own(lanes: int, world: int, shared: int) -> None:
    """One epoch of 24 steps: at most the blocks on the lanes' borders are read twice. With 6 lanes, ranks 0 and 2
    share theirs."""
    blocks = [12] * 24
    config = DataConfig(workers=0, window=4, lanes=lanes)
    read = []
    for rank in range(world):
        result = batches(Noise(blocks, side=32), 24, config, micro_batch=3, rank=rank, world=world, size=8)
        read.append({label // 12 for _, labels in result for label in labels.tolist()})
    assert set.union(*read) == set(range(24))
    assert sum(map(len, read)) <= 24 + shared
    if lanes % world:
        assert len(read[0] & read[2]) > 8
        assert len(read[0] & read[1]) <= 2


def misses(stream: SampleStream, blocks: list[int], positions: range) -> int:
    """Reads from storage of a reader that keeps the last `blocks_at_hand` blocks used."""
    owner, held, count = np.repeat(np.arange(len(blocks)), blocks), OrderedDict[int, None](), 0
    for position in positions:
        block = int(owner[stream[position][1]])
        count += block not in held
        held[block] = None
        held.move_to_end(block)
        if len(held) > stream.blocks_at_hand(positions.step):
            held.popitem(last=False)
    return count


@pytest.mark.parametrize(("lanes", "world"), [(1, 1), (4, 4), (8, 2), (8, 1), (2, 1)])
def test_enough_blocks_are_kept(lanes: int, world: int) -> None:
    blocks = [50] * 96
    stream = SampleStream(blocks, 0, 16, lanes)
    count = misses(stream, blocks, range(0, sum(blocks), world))
    assert count <= 1.06 * (96 / world + lanes)


def test_row_groups_are_read_once_by_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(range(240)), group=5)
    config = DataConfig(workers=0, window=8, lanes=4)
    source = open_source(str(path))  # looks at a sample of the pictures, and keeps their row groups
    sources = [pickle.loads(pickle.dumps(source)) for _ in range(4)]
    reads = counted_row_groups(monkeypatch)
    for rank in range(4):
        batches(sources[rank], 20, config, micro_batch=3, rank=rank, world=4, size=8)
    assert set(reads) == set(range(48))
    assert len(reads) <= 48 + 3
