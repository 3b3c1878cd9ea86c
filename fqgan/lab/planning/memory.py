"""A GPU's memory by micro-batch: some are followed, those between lie on straight lines."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from fqgan.lab.planning.steps import KINDS, RunConfig, Step, follow

_SMALL = 4
"""Micro-batch that is followed beside larger ones."""


@dataclass(frozen=True)
class Memory:
    """Bytes of each kind when most are alive.

    Attributes:
        followed: whether a step of this micro-batch was followed.
    """

    micro_batch: int
    kinds: dict[str, int]
    followed: bool

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.kinds.values())


class Memories:
    """Of one run.

    Args:
        share: images of a GPU in a step; micro-batches divide it.
        usable: bytes of a GPU for tensors.
        also: micro-batch that is followed beside a small one.
    """

    def __init__(self, config: RunConfig, gpus: int, share: int, usable: float, also: int = 2 * _SMALL):
        self.config, self.gpus, self.share, self.usable = config, gpus, share, usable
        self.choices = [each for each in range(1, share + 1) if share % each == 0]
        self._steps: dict[int, Step] = {}
        for each in (_SMALL, also if also != _SMALL else 2 * _SMALL):
            self.step(max(choice for choice in self.choices if choice <= each))

    def step(self, micro_batch: int) -> Step:
        """A step of micro-batches of this size."""
        if micro_batch not in self._steps:
            accumulate = micro_batch < self.share
            self._steps[micro_batch] = follow(self.config, micro_batch, self.gpus, accumulate=accumulate)
        return self._steps[micro_batch]

    def at(self, micro_batch: int) -> Memory:
        """What a micro-batch of this size takes."""
        if micro_batch in self._steps:
            return Memory(micro_batch, self._steps[micro_batch].memory, True)
        known = sorted(self._steps)
        if len(known) == 1:
            self.step(micro_batch)
            return self.at(micro_batch)
        place = min(max(1, bisect_left(known, micro_batch)), len(known) - 1)
        low, high = known[place - 1 : place + 1]
        part = (micro_batch - low) / (high - low)
        below, above = self._steps[low].memory, self._steps[high].memory
        kinds = {kind: max(0, round(below[kind] + part * (above[kind] - below[kind]))) for kind in KINDS}
        return Memory(micro_batch, kinds, False)

    def largest(self) -> int:
        """The largest micro-batch that fits, which was followed; 0 if none does."""
        for each in reversed(self.choices):
            if self.at(each).peak <= self.usable:
                self.step(each)
                if self.at(each).peak <= self.usable:
                    return each
        return 0
