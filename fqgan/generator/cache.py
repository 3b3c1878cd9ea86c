"""Keys and values of the positions so far, and what the next position of each row sees of them."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_STEP = 64  # positions by which caches grow, and what static shapes read
_FASTER = 1.5  # times that the fused kernel must be as fast as products, so that noise does not choose


class Span(NamedTuple):
    """Rows of a step that are attended to in one go, since their places in the caches lie side by side."""

    rows: slice
    """Of the step."""
    slots: slice
    """Of the caches."""
    at: int | tuple[Tensor, Tensor]
    """Position of all rows, which fill the slots; or each row's slot and position, both (n,)."""
    length: int
    """Positions that are read."""
    mask: Tensor | None = None
    """(slots or 1, length): 0 at the positions that a slot sees, -inf at those to come; None: all are seen."""
    holes: tuple[Tensor, Tensor] | None = None
    """Where there are slots without a row: a row for each slot, and each row's place among the slots."""


Places = tuple[Span, ...]
"""Where the rows of a step stand in the caches."""


def together(n: int, position: int) -> Places:
    """The first n rows at one position."""
    return (Span(slice(0, n), slice(0, n), position, position + 1),)


def in_steps(length: int, positions: int) -> int:
    """The next multiple of 64 positions, or all positions there are."""
    return min(-(-length // _STEP) * _STEP, positions)


class KeyValueCache:
    """Keys and values of one attention layer, each (rows, kv_heads, positions, head_dim).

    On a CPU they have room for the positions so far alone, in steps of 64: there products copy what is not contiguous,
    which takes up to twice the time of the products themselves.

    Args:
        heads: of queries; several share a key.
        whole: room for all positions from the start, as static shapes want it.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rows: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
        whole: bool = False,
    ):
        self.positions = positions
        self.grows = device.type == "cpu" and not whole
        self.fused = device.type == "cuda" or (
            device.type == "cpu"
            and dtype == torch.bfloat16
            and fused_is_faster(rows, heads, kv_heads, head_dim, in_steps(positions // 2 + 1, positions))
        )
        self.width = kv_heads * head_dim
        """Numbers that a position's keys have."""
        self.mixes = dtype != torch.float32 or not self.grows or keeps_bits(heads, kv_heads, head_dim, positions)
        """Whether rows at several positions may go together."""
        room = in_steps(1, positions) if self.grows else positions
        # zeros: what a masked softmax multiplies by nothing must be finite
        self.keys, self.values = torch.zeros((2, rows, kv_heads, room, head_dim), dtype=dtype, device=device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, places: Places) -> Tensor:
        """Take in the keys and values (n, kv_heads, hd) of a position of each row; what its queries (n, heads, hd) see
        of all positions so far, (n, heads, hd)."""
        if self.grows:
            self._make_room(max(span.length for span in places))
        parts = [self._attend_span(q[span.rows], k[span.rows], v[span.rows], span) for span in places]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forget(self, slots: Tensor) -> None:
        """Clear some rows."""
        self.keys[slots], self.values[slots] = 0, 0

    def _attend_span(self, q: Tensor, k: Tensor, v: Tensor, span: Span) -> Tensor:
        keys, values = self.keys, self.values
        if isinstance(span.at, int):
            keys[span.slots, :, span.at], values[span.slots, :, span.at] = k, v
        else:
            slots, positions = span.at
            keys[slots, :, positions], values[slots, :, positions] = k.to(keys.dtype), v.to(values.dtype)
        keys, values = keys[span.slots, :, : span.length], values[span.slots, :, : span.length]
        if span.holes is None:
            return attend(q, keys, values, span.mask, self.fused)
        of_slot, of_row = span.holes
        return attend(q[of_slot], keys, values, span.mask, self.fused)[of_row]

    def _make_room(self, length: int) -> None:
        room = in_steps(length, self.positions)
        if room == self.keys.shape[2]:
            return
        kept = min(room, self.keys.shape[2])
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros((*old.shape[:2], room, old.shape[3]))
            new[:, :, :kept] = old[:, :, :kept]
            setattr(self, name, new)


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, fused: bool) -> Tensor:
    """What queries (n, heads, hd) of one position each see, (n, heads, hd).

    Args:
        keys, values: (n, kv_heads, length, hd); heads are a multiple of kv_heads.
        mask: (n or 1, length), added to the scores.
        fused: by torch's kernel, on a CPU made for many queries; otherwise by plain products.
    """
    n, kv_heads, length, hd = keys.shape
    q = q.reshape(n, kv_heads, -1, hd)  # the queries that share a key are rows of one product
    if mask is not None:
        mask = mask[:, None, None]
    if fused:
        mask = None if mask is None else mask.expand(n, kv_heads, q.shape[2], length)
        return F.scaled_dot_product_attention(q, keys, values, mask).reshape(n, -1, hd)
    scores = (keys @ (q * hd**-0.5).transpose(2, 3)).transpose(2, 3)  # keys on the left are not copied on the way
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ values).reshape(n, -1, hd)


@lru_cache(maxsize=64)
def fused_is_faster(rows: int, heads: int, kv_heads: int, head_dim: int, length: int) -> bool:
    """Whether torch's kernel beats plain products in bf16 on this CPU, clearly; measured once in a process.

    In float32 nothing is measured: there an image's codes must not depend on who was faster.
    """
    q = torch.ones(rows, heads, head_dim, dtype=torch.bfloat16)
    keys = torch.ones(rows, kv_heads, length, head_dim, dtype=torch.bfloat16)
    mask = torch.zeros(1, length, dtype=torch.bfloat16)
    best = {True: math.inf, False: math.inf}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for one that another process holds up would decide
    try:
        for fused in (True, False) * 6:  # in turn, so that both meet the same disturbances
            began = time.perf_counter()
            attend(q, keys, keys, mask, fused)
            best[fused] = min(best[fused], time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return best[True] * _FASTER < best[False]


@lru_cache(maxsize=64)
def keeps_bits(heads: int, kv_heads: int, head_dim: int, positions: int) -> bool:
    """Whether in float32 on this CPU a row's attention has the same bits when masked positions follow, so that rows at
    all positions may go together. Sums over what follows add zeros; only other kernels for other lengths could tell."""
    generator = torch.Generator().manual_seed(0)
    q, keys, values = (
        torch.randn(3, *shape, head_dim, generator=generator)
        for shape in ((heads,), (kv_heads, positions), (kv_heads, positions))
    )
    for length in range(_STEP, positions, _STEP):
        own = attend(q, keys[:, :, :length].contiguous(), values[:, :, :length].contiguous(), None, False)
        for room in {in_steps(length + 1, positions), positions}:
            mask = masked(length, room, torch.float32)
            longer = attend(q, keys[:, :, :room].contiguous(), values[:, :, :room].contiguous(), mask, False)
            if not torch.equal(own, longer):
                return False
    return True


@lru_cache(maxsize=1024)
def masked(seen: int, length: int, dtype: torch.dtype) -> Tensor | None:
    """(1, length) on the CPU: 0 at the positions that are seen, -inf at the others; None where all are."""
    if seen == length:
        return None
    with torch.inference_mode(False):
        return torch.zeros(1, length, dtype=dtype).masked_fill(torch.arange(length) >= seen, -torch.inf)
