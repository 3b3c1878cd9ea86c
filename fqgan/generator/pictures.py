"""Pictures with words beside them: rows of classes, captions, heat maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fqgan.data.transforms import to_tensor
from fqgan.tokenizer.pictures import grid_of

_MARGIN = 8  # pixels beside a name
_FONT_SIZE = 12
_LEGIBLE = 96  # pixels: smaller pictures are enlarged where text stands below them


def labelled_rows(rows: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """(3, H', W') in [-1, 1]: each of the equally long batches (b, 3, H, W) as a row, with its name to the left."""
    grid = grid_of(list(rows))
    if not any(names):
        return grid
    font = ImageFont.load_default(_FONT_SIZE)
    width = int(max(font.getlength(name) for name in names)) + 2 * _MARGIN
    column = Image.new("RGB", (width, grid.shape[1]), "white")
    draw = ImageDraw.Draw(column)
    height = grid.shape[1] / len(rows)
    for i, name in enumerate(names):
        draw.text((_MARGIN, (i + 0.5) * height), name, "black", font, anchor="lm")
    return torch.cat([to_tensor(column).to(grid) / 127.5 - 1, grid], 2)


def captioned(images: Tensor, captions: Sequence[str]) -> Tensor:
    """(b, 3, H', W') in [-1, 1]: images (b, 3, H, W), small ones enlarged by a whole number, each above its caption."""
    font = ImageFont.load_default(_FONT_SIZE)
    room = int(max(font.getlength(caption) for caption in captions)) + 2 * _MARGIN
    factor = -(-max(room, _LEGIBLE) // images.shape[3]) if images.shape[3] < max(room, _LEGIBLE) else 1
    enlarged = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    strips = []
    for caption in captions:
        strip = Image.new("RGB", (enlarged.shape[3], 2 * _FONT_SIZE), "white")
        ImageDraw.Draw(strip).text((strip.width / 2, _FONT_SIZE), caption, "black", font, anchor="mm")
        strips.append(to_tensor(strip).to(enlarged) / 127.5 - 1)
    return torch.cat([enlarged, torch.stack(strips)], 2)


def heat_maps(maps: Tensor, names: Sequence[str], unit: str) -> Tensor:
    """(3, H', W') in [-1, 1]: maps (n, h, w) beside each other, each from its smallest number (black) to its largest
    (white), above its name and these two."""
    low, high = maps.amin((1, 2)), maps.amax((1, 2))
    spans = zip(names, low.tolist(), high.tolist(), strict=True)
    captions = [f"{name}: {least:.3g} (black) to {most:.3g} {unit}" for name, least, most in spans]
    scaled = (maps - low[:, None, None]) / (high - low).clamp(min=1e-12)[:, None, None] * 2 - 1
    return grid_of([captioned(scaled.float()[:, None].expand(-1, 3, -1, -1), captions)])
