"""Pictures that cannot be read: how many there may be in a training run, and in a copy of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fqgan.base.errors import TooSmallError, UnreadableError, UserError

FLOOR = 10
"""Unreadable pictures that never end a run, however few pictures have been read: small shares say little."""
NAMED = 100
"""Unreadable pictures that a process names; it only counts the others."""


class Note(NamedTuple):
    """What a reader has to say of a picture that it met."""

    text: str
    """For a warning; empty: only to be counted."""
    small: bool = False
    """Whether it is below the size, not unreadable."""

    @classmethod
    def of(cls, error: UnreadableError) -> Note:
        """Of a picture that is left out."""
        return cls(str(error), isinstance(error, TooSmallError))


SMALL = Note("", small=True)
"""Of a picture that was enlarged."""


class Omissions:
    """The unreadable pictures that a copy of a data set goes without.

    Args:
        source: the data set's name.
        total: its pictures.
        limit: the share that may be left out. `FLOOR` pictures are never too many, except where it is 0.
        record: the file that will list them all.
        before: how many earlier attempts left out.
    """

    def __init__(self, source: str, total: int, limit: float, record: Path, before: int = 0):
        self.source, self.total, self.limit, self.record = source, total, limit, record
        self.failed = before

    def add(self, problem: str, note: Callable[[str], None]) -> None:
        """Count a picture and name it; `UserError` where it is one too many."""
        self.failed += 1
        if self.failed > (max(FLOOR, self.limit * self.total) if self.limit else 0):
            raise UserError(
                f"{problem}; {self.failed} of the {self.total} pictures of {self.source} cannot be read so far, more "
                f"than --max-unreadable {self.limit:g} allows: repair them, or raise it"
            )
        if self.failed <= NAMED:
            note(f"warning: left out: {problem}")
        elif self.failed == NAMED + 1:
            note(f"warning: more pictures cannot be read; {self.record} will name them all")


class UnreadableMeter:
    """Counts the reads that failed, and the pictures below the size, over all ranks and restarts of a run.

    A run is judged by what it read since it was last started, so that it goes on once its pictures are repaired.

    Args:
        limit: the share of reads that may fail.
    """

    def __init__(self, limit: float, device: torch.device | str = "cpu"):
        self.limit, self.device = limit, device
        self._before = (0, 0)  # failed, small
        self._failed = self._small = self._seen = 0
        self._failed_anywhere = 0

    def update(self, seen: int, failed: int, small: int = 0) -> None:
        """Since this start: images seen by all ranks, reads of this rank that failed, and pictures of this rank that
        were enlarged or skipped."""
        self._seen, self._failed, self._small = seen, failed, small

    def compute(self, all_reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`unreadable`: reads that failed since the run began, over all ranks; `small`: pictures below the size, where
        there were any."""
        sums = all_reduce(torch.tensor([*self._before, self._failed, self._small], device=self.device))
        before, small_before, self._failed_anywhere, small = sums.tolist()
        small += small_before
        return {"unreadable": before + self._failed_anywhere, **({"small": small} if small else {})}

    def check(self) -> None:
        """`UserError` where too many reads failed as of the last `compute`."""
        failed = self._failed_anywhere
        if failed > max(FLOOR, self.limit * (self._seen + failed)):
            raise UserError(
                f"{failed} of the last {self._seen + failed} pictures cannot be read, more than data.max_unreadable "
                f"{self.limit:g} allows; the warnings above name them: repair them, or raise --data.max-unreadable"
            )

    def state(self) -> Tensor:
        """What `load_state` takes; adds up over ranks."""
        return torch.tensor([self._before[0] + self._failed, self._before[1] + self._small], device=self.device)

    def load_state(self, state: Tensor) -> None:
        """Go on from a checkpoint; those of version 0.1 did not count small pictures."""
        failed, small = (*state.tolist(), 0)[:2]
        self._before = int(failed), int(small)
