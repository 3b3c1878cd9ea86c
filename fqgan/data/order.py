"""The order in which training sees samples: a pure function of the seed, whatever the ranks and workers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fqgan.base.errors import UserError

# Keeps this use of (seed, epoch) apart from others. It must not be 0: SeedSequence pads short keys with zeros.
_ORDER_TAG = 0x04DE4


def epoch_order(blocks: Sequence[int], seed: int, epoch: int, window: int, lanes: int = 1) -> npt.NDArray[np.int64]:
    """All sample indices in the order of one epoch.

    `blocks` holds the lengths of consecutive spans of indices. The blocks are shuffled, then the samples within each
    `window` successive blocks, so that a reader needs no more than `window` blocks at hand. A single block gives a
    full shuffle.

    With several `lanes`, the sequence of shuffled blocks is first cut into as many shares, as equal as can be, and the
    samples are shuffled within each window / lanes (rounded up) blocks of a share. Counted over all epochs, position p
    belongs to lane p mod lanes: who reads some of the lanes needs their blocks only, but for those on the borders of
    shares, which two lanes read. The samples of a single block are cut into ranges, which stay the same in all epochs.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, _ORDER_TAG])))
    count = sum(blocks)
    spans = np.split(np.arange(count, dtype=np.int64), np.cumsum(blocks)[:-1])
    shuffled = [spans[block] for block in rng.permutation(len(spans))]
    order = np.empty(count, dtype=np.int64)
    places = [order[(lane - epoch * count) % lanes :: lanes] for lane in range(lanes)]
    for place, share in zip(places, _shares(shuffled, [len(place) for place in places]), strict=True):
        size = lane_window(window, lanes)
        windows = [np.concatenate(share[i : i + size]) for i in range(0, len(share), size)]
        if windows:
            place[:] = np.concatenate([rng.permutation(indices) for indices in windows])
    return order


def lane_window(window: int, lanes: int) -> int:
    """Blocks that a lane shuffles together."""
    return -(-window // lanes)


def _shares(spans: Sequence[npt.NDArray[np.int64]], lengths: Sequence[int]) -> list[list[npt.NDArray[np.int64]]]:
    """Successive spans, some of them cut in two, as lists of the total `lengths`."""
    ends = np.cumsum([len(span) for span in spans])
    shares = []
    start = 0
    for length in lengths:
        stop, share = start + length, []
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        for span, end in zip(spans[first : last + 1], ends[first : last + 1], strict=True):
            begin = int(end) - len(span)
            share.append(span[max(0, start - begin) : stop - begin])
        shares.append([piece for piece in share if len(piece)])
        start = stop
    return shares


def sample_rng(seed: int, sample: tuple[int, int], tag: int) -> np.random.Generator:
    """Random numbers of one sample (epoch, index) for one purpose, whatever rank or worker draws them. `tag` keeps
    purposes apart; it must not be 0."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *sample, tag])))


class SampleStream:
    """The infinite concatenation of the epochs 0, 1, 2, ... of `epoch_order`, open at any position."""

    def __init__(self, blocks: Sequence[int], seed: int, window: int, lanes: int = 1) -> None:
        self.blocks = tuple(blocks)
        self.seed = seed
        self.window = window
        self.lanes = lanes
        self.epoch_length = sum(self.blocks)
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def blocks_at_hand(self, ranks: int) -> int:
        """Blocks that one of `ranks` ranks, each with its own lanes, needs at hand so that it reads each but once."""
        own = self.lanes // math.gcd(self.lanes, ranks)
        # lanes go on to their next blocks at different times: room for one of them
        return lane_window(self.window, self.lanes) * (own + (self.lanes > 1))

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index) of one position."""
        epoch, place = divmod(position, self.epoch_length)
        return epoch, int(self._order(epoch)[place])

    def batches(
        self, *, batch: int, micro_batch: int, rank: int, world: int, start_step: int
    ) -> Iterator[list[tuple[int, int]]]:
        """A rank's micro-batches of (epoch, index) from optimizer step `start_step` on, without end.

        Step s covers the positions [s * batch, (s + 1) * batch) of the stream, and micro-batch m of all ranks in it
        the world * micro_batch ones from s * batch + m * world * micro_batch: the union over the ranks depends neither
        on their number nor on the micro-batch. With one lane, rank r takes the r-th run of micro_batch positions; with
        several the positions p = r modulo world, and so the lanes of that residue: a number of lanes that is a multiple
        of world gives every rank blocks of its own. A data set smaller than a batch comes several times in it.

        `UserError` when `batch` is no multiple of micro_batch * world.
        """
        together = world * micro_batch
        if batch % together:
            raise UserError(f"batch {batch} is no multiple of micro_batch {micro_batch} times {world} ranks")
        starts = (
            start for step in itertools.count(start_step) for start in range(step * batch, (step + 1) * batch, together)
        )
        if self.lanes == 1:
            return (self.take(start + rank * micro_batch, start + (rank + 1) * micro_batch) for start in starts)
        return (self.take(start + rank, start + together, world) for start in starts)

    def take(self, start: int, stop: int, step: int = 1) -> list[tuple[int, int]]:
        """(epoch, index) of every `step`-th position in [start, stop)."""
        return [self[position] for position in range(start, stop, step)]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            # positions run upwards: an epoch and its successor are all that a batch in between needs
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = epoch_order(self.blocks, self.seed, epoch, self.window, self.lanes)
        return self._orders[epoch]


def spread_over_blocks(blocks: Sequence[int], count: int, most_blocks: int = 64) -> list[int]:
    """At most `count` (0: all) evenly spaced indices of a source, in order, from no more than `most_blocks` blocks, as
    each of these has to be read whole."""
    total = sum(blocks)
    if not count or count >= total:
        return list(range(total))
    chosen = _spread(len(blocks), min(len(blocks), most_blocks, count))
    indices = []
    for number, block in enumerate(chosen):
        share = (number + 1) * count // len(chosen) - number * count // len(chosen)
        start = sum(blocks[:block])
        indices += [start + i for i in _spread(blocks[block], min(share, blocks[block]))]
    return indices


def _spread(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]
