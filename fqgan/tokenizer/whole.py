"""Whole pictures: sides that are no multiples of the downsampling factor, and large pictures tile by tile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_count, as_factors, as_tensor
from fqgan.tokenizer.protocol import Tokenizer

Fit = Literal["pad", "crop"]
_CONTEXT = 4  # positions that tiles share at least, where they have as many
Keep = int | str | Iterable[int | str] | None


def fit(images: Numbers, f: int, how: Fit = "pad") -> Tensor:
    """Bring the sides of images to multiples of f.

    Args:
        images: (b, c, H, W) of any type.
        f: the downsampling factor.
        how: `pad` adds fewer than f pixels on the right and at the bottom, the reflection of those beside them. `crop`
            cuts fewer than f pixels off, half of them on each side.

    Returns:
        (b, c, H', W') of the same type. `UserError` for other shapes, and where a crop would leave nothing.
    """
    images, f = as_tensor(images, "images"), as_count(f, "f", 1)
    if images.ndim != 4 or 0 in images.shape[2:]:
        raise UserError(f"images must be (b, c, H, W), got {tuple(images.shape)}")
    if how not in ("pad", "crop"):
        raise UserError(f"pictures are fitted by pad or crop, not by {how!r}")
    if how == "crop" and min(images.shape[2:]) < f:
        raise UserError(f"pictures of {images.shape[3]}x{images.shape[2]} pixels are below {f}: pad them")
    for axis in (2, 3):
        side = images.shape[axis]
        rest = side % f
        if how == "crop":
            images = images.narrow(axis, rest // 2, side - rest)
        elif rest:
            # a triangle wave: a side that is shorter than its continuation is reflected again and again
            period = max(1, 2 * side - 2)
            there = torch.arange(side - rest + f, device=images.device) % period
            images = images.index_select(axis, torch.minimum(there, period - there))
    return images


def encode_tiled(tokenizer: Tokenizer, images: Numbers, tile: int = 0, overlap: int | None = None) -> Tensor:
    """Codes of images of any size, of which no more than a tile passes through the tokenizer at a time.

    The codes of a position come from the tile in whose middle it lies: where two tiles overlap, each gives the half
    that is nearer to it.

    Args:
        images: (b, 3, H, W) as `FactorizedTokenizer.encode` takes them, on any device. H and W are multiples of the
            downsampling factor f (`fit`).
        tile: side of a tile in pixels, a multiple of f; 0: one piece.
        overlap: pixels that neighbours share at least, a multiple of f and at most half a tile; None: a quarter,
            but at least four positions of the code map.

    Returns:
        (b, k, H/f, W/f) int64 on the tokenizer's device, or the latents of one without codes. Those of a picture that
        fits into a tile are `encode`'s.
    """
    images = as_tensor(images, "images")
    if images.ndim != 4:
        return tokenizer.encode(images)  # tells what is wrong
    tokenizer.check_size(*images.shape[2:])
    f, grid = tokenizer.config.downsampling, _grid(tokenizer, tile, overlap)
    h, w = (side // f for side in images.shape[2:])
    codes: Tensor | None = None
    for y in spans(h, *grid, f):
        for x in spans(w, *grid, f):
            part = tokenizer.encode(images[:, :, y.start * f : y.stop * f, x.start * f : x.stop * f])
            codes = part.new_empty(*part.shape[:2], h, w) if codes is None else codes
            codes[:, :, y.first : y.last, x.first : x.last] = part[
                :, :, y.first - y.start : y.last - y.start, x.first - x.start : x.last - x.start
            ]
    assert codes is not None
    return codes


def decode_tiled(
    tokenizer: Tokenizer, codes: Numbers, tile: int = 0, overlap: int | None = None, keep: Keep = None
) -> Tensor:
    """Images (b, 3, H, W), not clipped, of codes (b, k, h, w): the strips of `decode_strips` in one."""
    return torch.cat([*decode_strips(tokenizer, codes, tile, overlap, keep)], 2)


def decode_strips(
    tokenizer: Tokenizer, codes: Numbers, tile: int = 0, overlap: int | None = None, keep: Keep = None
) -> Iterator[Tensor]:
    """Decode codes tile by tile, and hand out what is finished from top to bottom.

    Pixels in an overlap are a mean of both tiles, whose weights change linearly across it.

    Args:
        codes: (b, k, h, w) as `FactorizedTokenizer.decode` takes them.
        tile, overlap: as in `encode_tiled`.
        keep: as in `FactorizedTokenizer.decode`.

    Yields:
        (b, 3, rows, W) float32, not clipped. Beside a tile's features, two rows of tiles are in memory.
    """
    f, grid = tokenizer.config.downsampling, _grid(tokenizer, tile, overlap)
    codes = tokenizer.check_codes(codes)
    kept = None if keep is None else as_factors(keep, [factor.name for factor in tokenizer.config.factors])
    rows, columns = (spans(side, *grid, f) for side in codes.shape[2:])
    above: Tensor | None = None
    for y, below in zip(rows, [*rows[1:], None], strict=True):
        strip: Tensor | None = None
        for x in columns:
            with torch.no_grad():
                part = tokenizer.decode(codes[:, :, y.start : y.stop, x.start : x.stop], kept, values=False)
            if strip is None:
                strip = part.new_zeros(*part.shape[:3], codes.shape[3] * f)
            weights = y.weights[:, None] * x.weights
            strip[..., x.start * f : x.stop * f] += part.mul_(weights.to(part))
        assert strip is not None
        if above is not None:
            strip[:, :, : above.shape[2]] += above
        done = ((below.start if below else y.stop) - y.start) * f
        yield strip[:, :, :done]
        above = strip[:, :, done:].clone()


def tiles(tokenizer: Tokenizer, height: int, width: int, tile: int, overlap: int | None = None) -> tuple[int, int]:
    """How many tiles a picture of that many pixels has, down and across. `UserError` as `encode_tiled`."""
    f, grid = tokenizer.config.downsampling, _grid(tokenizer, tile, overlap)
    return len(spans(height // f, *grid, f)), len(spans(width // f, *grid, f))


class Span(NamedTuple):
    """A tile's extent along one axis, in positions of the code map."""

    start: int
    stop: int
    first: int
    """The first position whose code is this tile's."""
    last: int
    """The one after the last of them."""
    weights: Tensor
    """(pixels,) float32: the tile's share of its pixels. The shares of all tiles add up to 1 everywhere."""


def spans(length: int, tile: int, overlap: int, f: int) -> list[Span]:
    """The fewest tiles that cover `length` positions, evenly spaced: one where it is no more than a tile.

    Args:
        tile: positions of a tile.
        overlap: positions that neighbours share at least, and over which their shares change.
        f: pixels of a position.
    """
    tile = min(tile, length)
    count = -(-(length - overlap) // (tile - overlap)) if tile < length else 1
    starts = [i * (length - tile) // max(1, count - 1) for i in range(count)]
    middles = [(start + tile + following) / 2 for start, following in pairwise(starts)]
    pixels, width = torch.arange(tile * f) + 0.5, max(1, overlap * f)

    def ramp(start: int, middle: float) -> Tensor:
        """From 0 to 1 around a middle."""
        return ((pixels + (start - middle) * f) / width + 0.5).clamp(0, 1)

    found = []
    for start, before, after in zip(starts, [None, *middles], [*middles, None], strict=True):
        # the difference of two ramps: whatever their width, the shares of all tiles add up to 1
        rise = torch.ones(tile * f) if before is None else ramp(start, before)
        weights = rise if after is None else rise - ramp(start, after)
        ends = int(before or 0), length if after is None else int(after)
        found.append(Span(start, start + tile, *ends, weights))
    return found


def _grid(tokenizer: Tokenizer, tile: int, overlap: int | None) -> tuple[int, int]:
    """Tile and overlap in positions. `UserError` for sizes that the tokenizer cannot use."""
    f, tile = tokenizer.config.downsampling, as_count(tile, "tile")
    if not tile:
        return 2**63, 0
    if tile % f:
        raise UserError(f"tile {tile} is no multiple of the tokenizer's downsampling factor {f}")
    t = tile // f
    shared = min(t // 2, max(t // 4, _CONTEXT)) * f if overlap is None else as_count(overlap, "overlap")
    if shared % f or 2 * shared > tile:
        raise UserError(f"overlap {shared} is no multiple of {f} up to half of a tile of {tile} pixels")
    return t, shared // f
