"""The order in which training sees samples: a pure function of the seed, whatever the ranks and workers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Keeps this use of (seed, epoch) apart from others. It must not be 0: SeedSequence pads short keys with zeros.
_ORDER_TAG = 0x04DE4


def epoch_order(blocks: Sequence[int], seed: int, epoch: int, window: int) -> npt.NDArray[np.int64]:
    """All sample indices in the order of one epoch.

    `blocks` holds the lengths of consecutive spans of indices. The blocks are shuffled, then the samples within each
    `window` successive blocks, so that a reader needs no more than `window` blocks at hand. A single block gives a
    full shuffle.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, _ORDER_TAG])))
    spans = np.split(np.arange(sum(blocks), dtype=np.int64), np.cumsum(blocks)[:-1])
    shuffled = [spans[block] for block in rng.permutation(len(spans))]
    windows = [np.concatenate(shuffled[i : i + window]) for i in range(0, len(shuffled), window)]
    return np.concatenate([rng.permutation(indices) for indices in windows])


class SampleStream:
    """The infinite concatenation of the epochs 0, 1, 2, ... of `epoch_order`, open at any position."""

    def __init__(self, blocks: Sequence[int], seed: int, window: int) -> None:
        self.blocks = tuple(blocks)
        self.seed = seed
        self.window = window
        self.epoch_length = sum(self.blocks)
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index) of one position."""
        epoch, place = divmod(position, self.epoch_length)
        return epoch, int(self._order(epoch)[place])

    def take(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, index) of the positions in [start, stop)."""
        return [self[position] for position in range(start, stop)]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            # positions run upwards: an epoch and its successor are all that a batch in between needs
            self._orders = {key: order for key, order in self._orders.items() if key == epoch - 1}
            self._orders[epoch] = epoch_order(self.blocks, self.seed, epoch, self.window)
        return self._orders[epoch]
