"""Codes that generated pictures are given, from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import as_whole
from fqgan.data.sources.npz import keys, read_array
from fqgan.generator.rows import Given


def read_given(path: Path, sizes: Sequence[int], grid: Sequence[int]) -> Tensor:
    """(n, k, h, w) int64: the codes that n pictures are given, -1 where one is drawn.

    Args:
        path: an .npz with `codes` (n, k, h, w) integers and `mask` (n, k, h, w) bool, true where a code stays; either
            may be of a shape that repeats to it. Without `mask` all codes from 0 on stay, and negative ones are drawn.

    Raises:
        UserError: a file that cannot be read, or holds other arrays; given codes that are none.
    """
    found = read_array(path, "codes")
    own = read_array(path, "mask") if "mask" in keys(path) else None
    try:
        codes = as_whole(found, "codes")
        mask = codes >= 0 if own is None else own
        count = max((len(each) for each in (codes, mask) if each.ndim == 4), default=1)
        if not count:
            raise UserError("codes of one picture or more are needed, got none")
        given = Given.of(codes, mask, sizes, grid, count)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return given.codes.masked_fill(~given.held, -1).permute(1, 2, 0).unflatten(2, tuple(grid)).contiguous()


def told(given: Tensor, names: Sequence[str], num: int) -> str:
    """What `num` pictures are given, in a line: of how many pictures, and which share of each factor's codes.

    Args:
        names: of the factors.
    """
    used, count = given[:num], len(given)
    of = f"the first {num:,} of {count:,} pictures" if count > num else f"{count:,} picture{'s' * (count > 1)}"
    turn = ", in turn" if 1 < count < num else ""
    shares = (used >= 0).transpose(0, 1).flatten(1).double().mean(1).tolist()
    stay = ", ".join(f"{name} {100 * share:.4g} %" for name, share in zip(names, shares, strict=True))
    return f"given: codes of {of}{turn}; of them stay: {stay}" + ("; nothing is drawn" if min(shares) == 1 else "")
