"""Which codes of a picture an edit keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_count, as_factors, as_tensor


def kept(
    grid: tuple[int, int],
    factors: Sequence[str],
    downsampling: int,
    keep: Sequence[str | int] | None,
    region: Sequence[float] | None,
) -> Tensor:
    """Mask (k, h, w), true where a code stays: all of the factors to keep, and all factors outside of the region.

    Args:
        region: left, top, right, bottom in pixels; what any pixel of it lies in is drawn anew. None: everywhere.
    """
    mask = torch.zeros(len(factors), *grid, dtype=torch.bool)
    mask[as_factors(keep or [], factors)] = True
    if region is not None:
        h, w = (side * downsampling for side in grid)
        x0, y0, x1, y1 = region
        if not (0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h):
            raise UserError(f"region must be left, top, right, bottom within {w}x{h} pixels, got {list(region)}")
        f = downsampling
        outside = torch.ones(grid, dtype=torch.bool)
        outside[int(y0 // f) : int(-(-y1 // f)), int(x0 // f) : int(-(-x1 // f))] = False
        mask |= outside
    return mask


def own_mask(mask: Numbers, shape: tuple[int, int, int]) -> Tensor:
    """A client's mask (k, h, w) of booleans; `UserError` for another shape or type."""
    found = as_tensor(mask, "mask")
    if found.dtype != torch.bool or tuple(found.shape) != shape:
        raise UserError(f"mask must be booleans in lists of {' x '.join(map(str, shape))}")
    return found


def mixed(
    codes: Tensor, other: Tensor, take: Sequence[str | int], start: int, end: int, factors: Sequence[str]
) -> Tensor:
    """Codes (k, h, w) in which the named factors are those of other codes, at the positions from start up to end."""
    start, end = as_count(start, "from", 0, codes[0].numel()), as_count(end, "to", 0, codes[0].numel())
    if start > end:
        raise UserError(f"the mix goes from position {start} to {end}: the first must not be the larger one")
    result = codes.clone().flatten(1)
    for factor in as_factors(take, factors):
        result[factor, start:end] = other.flatten(1)[factor, start:end]
    return result.view_as(codes)
