"""Two sets of features against each other, a block at a time, so that memory grows with the sets and not with pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

BLOCK = 2048
"""Rows of a block: 2048 x 2048 float64 are 32 MiB."""

Advance = Callable[[int], None]
"""Told how many rows are done."""


def nothing(rows: int) -> None:
    """An `Advance` that shows nothing."""


def blocks(features: Tensor, block: int = BLOCK) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows in float64) of consecutive blocks of (n, d)."""
    for start in range(0, len(features), block):
        yield start, features[start : start + block].double()


def same_dims(a: Tensor, b: Tensor) -> None:
    """ValueError unless both are (n, d) with one d."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"two sets of features (n, d) of one d are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
