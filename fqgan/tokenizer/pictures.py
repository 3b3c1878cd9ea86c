"""Pictures of what a tokenizer does."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, write_bytes
from fqgan.data.transforms import to_uint8
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.protocol import Tokenizer


@torch.inference_mode()
def reconstruction_rows(model: Tokenizer, codes: Tensor) -> list[Tensor]:
    """Reconstructions from codes (b, k, h, w): of all factors, then (k > 1) of each factor alone (Fig. 3)."""
    return [model.decode(codes), *(model.decode(codes, keep=[name]) for name in model.separate)]


@torch.inference_mode()
def reconstruction_grid(model: nn.Module, images: Tensor) -> Tensor:
    """(3, H', W') in [-1, 1]: a column an image; rows: original, reconstruction, each factor alone."""
    assert isinstance(model, FactorizedTokenizer)
    return grid_of([images, *reconstruction_rows(model, model.encode(images))])


def grid_of(rows: list[Tensor]) -> Tensor:
    """(3, H', W') in [-1, 1]: each of the batches (b, 3, H, W) as a row. `UserError` for batches of no image."""
    if not rows or not len(rows[0]):
        raise UserError("a grid of no pictures")
    stacked = torch.cat([row.float().clamp(-1, 1) for row in rows])
    return make_grid(stacked, nrow=len(rows[0]), padding=2, pad_value=1.0)


def to_image(image: Tensor) -> Image.Image:
    """A PIL image of a (3, H, W) tensor in [-1, 1], or uint8."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def save_picture(image: Tensor, path: Path) -> None:
    """Write a (3, H, W) tensor in [-1, 1], or uint8, as PNG, whole or not at all."""
    make_folder(path.parent)
    buffer = io.BytesIO()
    to_image(image).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
