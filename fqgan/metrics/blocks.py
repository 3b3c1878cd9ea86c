"""Two sets of features against each other, a block at a time, so that memory grows with the sets and not with pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_rows
from fqgan.engine.devices import exact_device

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


def same_dims(a: Numbers, b: Numbers) -> tuple[Tensor, Tensor]:
    """Both as tensors on the device of the first, or on the CPU where that has no float64; `UserError` unless they are
    (n, d) with one d, and finite."""
    a = as_rows(a, "features")
    a = a.to(exact_device(a.device))
    b = as_rows(b, "features", device=a.device)
    if a.shape[1] != b.shape[1]:
        raise UserError(f"two sets of features (n, d) of one d are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise UserError("features are not finite (NaN or infinity)")
    return a, b
