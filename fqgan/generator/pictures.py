"""Grids of generated images, a row a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fqgan.data.transforms import to_tensor
from fqgan.tokenizer.pictures import grid_of

_MARGIN = 8  # pixels beside a name
_FONT_SIZE = 12


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
