"""A GPU's memory by micro-batch: some are followed, those between lie on straight lines."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from fqgan.lab.planning.steps import KINDS, RunConfig, Step, follow

_FEW = 8
"""The two largest micro-batches up to here are followed first."""


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
    """Of one run. Two micro-batches are followed, the planned one and the largest that fits; others lie between.

    Args:
        share: images of a GPU in a step; micro-batches divide it.
        usable: bytes of a GPU for tensors.
        planned: a micro-batch; 0: the largest that fits, or 1.
    """

    def __init__(self, config: RunConfig, gpus: int, share: int, usable: float, planned: int = 0):
        self.usable = usable
        self.choices = [each for each in range(1, share + 1) if share % each == 0]
        few = [each for each in self.choices if each <= _FEW]
        self._first = few[-2:]
        self._planned = planned
        self.steps: dict[int, Step] = {}
        follow(config, self._next, gpus, share)
        self.largest = self._fitting()
        self.planned = planned or self.largest or 1

    def _next(self, steps: dict[int, Step]) -> int:
        """The next micro-batch to follow."""
        self.steps = steps
        if missing := next((each for each in self._first if each not in steps), 0):
            return missing
        wanted = self._planned, self._fitting() or 1
        return next((each for each in wanted if each and each not in steps), 0)

    def _fitting(self) -> int:
        """The largest micro-batch that fits, as far as is known; 0 if none does."""
        return max((each for each in self.choices if self.at(each).peak <= self.usable), default=0)

    def at(self, micro_batch: int) -> Memory:
        """What a micro-batch of this size takes."""
        if micro_batch in self.steps:
            return Memory(micro_batch, self.steps[micro_batch].memory, True)
        known = sorted(self.steps)
        place = min(max(1, bisect_left(known, micro_batch)), len(known) - 1)
        low, high = known[place - 1 : place + 1]
        part = (micro_batch - low) / (high - low)
        below, above = self.steps[low].memory, self.steps[high].memory
        kinds = {kind: max(0, round(below[kind] + part * (above[kind] - below[kind]))) for kind in KINDS}
        return Memory(micro_batch, kinds, False)
