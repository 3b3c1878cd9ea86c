"""What each row of a sampler brings along: how it is drawn, what of it is given, where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_codes, as_tensor, as_whole
from fqgan.config import SamplingConfig
from fqgan.generator.cache import KeyValueCache, Places, Span, in_steps, masked
from fqgan.generator.draw import guidance_scales

Draw = tuple[float, int, float]
"""Temperature, top-k and top-p of a factor."""
Draws = Sequence[tuple[slice | Tensor, tuple[Draw, ...]]]
"""Groups of rows, and of each group the draws of all factors."""
ALL = slice(None)
_CALL = 2**17  # numbers of keys that are read in the time that a call costs


class Key(NamedTuple):
    """What the shapes and operators of a static step depend on."""

    length: int
    guided: bool
    some_held: bool
    all_held: bool


class Step(NamedTuple):
    """The rows of a step: those with their class, then the guided ones of them with the null class.

    Attributes:
        rows: of the batch.
        guided: which of `rows` are guided; None: none of them.
        at: (position, row) of each: where tables are read and written.
        draws: for groups of `rows`; empty: the tables of settings say it.
        key: what is given.
    """

    rows: slice | Tensor
    guided: slice | Tensor | None
    at: tuple[Any, Any]
    draws: Draws
    key: Key


@dataclass(frozen=True)
class Rule:
    """How a row is drawn.

    Attributes:
        scales: guidance's, (positions, k) float32.
        guided: positions from here on need no guidance any more.
        draws: of each factor.
    """

    scales: Tensor
    guided: int
    draws: tuple[Draw, ...]

    @classmethod
    def of(cls, config: SamplingConfig, positions: int, factors: int) -> Rule:
        """That of a config."""
        scales = guidance_scales(config, positions, factors)
        guided = max((t + 1 for t, row in enumerate(scales) if (row != 1).any()), default=0)
        draws = zip(*(config.each(name, factors) for name in ("temperature", "top_k", "top_p")), strict=True)
        return cls(scales, guided, tuple((float(t), int(k), float(p)) for t, k, p in draws))


@dataclass(frozen=True)
class Given:
    """Codes that are taken as they stand.

    Attributes:
        codes: (positions, n, k) int64, 0 where none is given.
        held: (positions, n, k) bool.
    """

    codes: Tensor
    held: Tensor

    @classmethod
    def of(cls, codes: Numbers, mask: Numbers, sizes: Sequence[int], grid: Sequence[int], n: int) -> Given:
        """Of codes and a mask (n, k, h, w), or of shapes that repeat to it, such as (1, k, 1, 1).

        Codes where the mask is false mean nothing. `UserError` for other shapes and types, and codes that are none.
        """
        shape = (n, len(sizes), *grid)
        wanted = as_tensor(mask, "mask").cpu()
        if wanted.dtype != torch.bool:
            raise UserError(f"mask must be true or false, got {str(wanted.dtype).removeprefix('torch.')}")
        numbers = as_whole(codes, "given").cpu()
        try:
            wanted, numbers = wanted.expand(shape), numbers.expand(shape)
        except RuntimeError:
            own = f"{tuple(numbers.shape)} with a mask {tuple(wanted.shape)}"
            raise UserError(f"given must be codes {shape} with a mask of the same shape, got {own}") from None
        numbers = as_codes(numbers.masked_fill(~wanted, 0), sizes, grid=grid)
        return cls(*(each.flatten(2).permute(2, 0, 1).contiguous() for each in (numbers, wanted)))

    def part(self, images: slice) -> Given:
        """Of some of the images."""
        return Given(self.codes[:, images], self.held[:, images])


class Slots:
    """Which places of a batch are taken, how far each is, and what is next. On the host: nobody waits for a GPU."""

    def __init__(self, batch: int, positions: int):
        self.batch, self.positions = batch, positions
        self.at = np.full(batch, -1)
        """Position of each slot; -1: free."""
        self.guided = np.zeros(batch, np.int64)
        """Positions of each slot from which on it needs no guidance."""
        self.rules: list[Rule | None] = [None] * batch
        self.held: npt.NDArray[np.int8] = np.zeros((positions, batch), np.int8)
        """How much is given: 0 nothing, 1 a part of the factors, 2 all of them."""

    @property
    def free(self) -> list[int]:
        """Slots that nobody has taken."""
        return np.flatnonzero(self.at < 0).tolist()

    @property
    def active(self) -> list[int]:
        """Slots whose images are under way."""
        return np.flatnonzero(self.at >= 0).tolist()

    def take(self, slots: Sequence[int], rule: Rule, given: Given | None) -> None:
        """Images begin."""
        self.at[slots], self.guided[slots] = 0, rule.guided
        self.held[:, slots] = 0 if given is None else given.held.any(2).int() + given.held.all(2).int()
        for slot in slots:
            self.rules[slot] = rule

    def needs_guidance(self, slots: Sequence[int]) -> list[int]:
        """Those of the slots whose position, or a later one, is guided."""
        return [slot for slot in slots if self.at[slot] < self.guided[slot]]

    def how_held(self, slots: Sequence[int]) -> tuple[bool, bool]:
        """Whether anything, and whether everything, is given at the slots' positions."""
        held = self.held[self.at[slots], slots]
        return bool(held.any()), bool((held == 2).all())

    def advance(self, slots: Sequence[int]) -> list[int]:
        """Move on by a position; returns the slots that are done, which are free now."""
        self.at[slots] += 1
        done = [slot for slot in slots if self.at[slot] == self.positions]
        self.at[done] = -1
        return done


def spans(slots: Sequence[int], positions: Sequence[int], caches: KeyValueCache) -> Places:
    """Where a step's rows, whose slots of the caches ascend, stand: few spans, since each is a call in every layer.

    Rows at all positions go together, over as many positions as the furthest has, where that keeps their bits; and
    slots between them that nobody has are computed along where that is less than a call.
    """
    lengths = [in_steps(position + 1, caches.positions) for position in positions]
    if caches.mixes:
        lengths = [max(lengths)] * len(lengths)
    starts = [0]
    for row in range(1, len(slots)):
        gap = (slots[row] - slots[row - 1] - 1) * caches.width * lengths[row]
        if gap > _CALL or lengths[row] != lengths[row - 1]:
            starts.append(row)
    ends = [*starts[1:], len(slots)]
    return tuple(
        _span(start, slots[start:end], positions[start:end], lengths[start], caches)
        for start, end in zip(starts, ends, strict=True)
    )


def _span(start: int, slots: Sequence[int], positions: Sequence[int], length: int, caches: KeyValueCache) -> Span:
    rows, first, taken = slice(start, start + len(slots)), slots[0], slots[-1] + 1 - slots[0]
    own, dtype, device = slice(first, first + taken), caches.keys.dtype, caches.keys.device
    if taken == len(slots) and len(set(positions)) == 1:
        seen = positions[0] + 1
        return Span(rows, own, seen - 1, *((length, masked(seen, length, dtype)) if caches.grows else (seen, None)))
    at, place = (torch.tensor(each, device=device) for each in (positions, slots))
    holes, seen = None, at
    if taken > len(slots):
        of_row = place - first
        of_slot = of_row.new_zeros(taken).index_copy(0, of_row, torch.arange(len(slots), device=device))
        holes, seen = (of_slot, of_row), at[of_slot]
    later = torch.arange(length, device=device) > seen[:, None]
    mask = torch.zeros(later.shape, dtype=dtype, device=device).masked_fill(later, -torch.inf)
    return Span(rows, own, (place, at), length, mask, holes)


def index(slots: Sequence[int], device: torch.device) -> slice | Tensor:
    """Consecutive slots as a slice, others as a tensor."""
    if list(slots) == [*range(slots[0], slots[0] + len(slots))]:
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, device=device)
