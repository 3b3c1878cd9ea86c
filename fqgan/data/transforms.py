"""Crops as guided diffusion (ADM) makes them, and the step between pictures and tensors."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fqgan.base.errors import TooSmallError, UserError
from fqgan.config.data import Small

CropKind = Literal["center", "flip", "ten"]
NUM_CROPS: dict[CropKind, int] = {"center": 1, "flip": 2, "ten": 10}
"""Squares that `crops` cuts."""
CENTER: dict[CropKind, int] = {"center": 0, "flip": 0, "ten": 4}
"""Which of them is the centre."""
_TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def resize_shorter(image: Image.Image, target: int) -> Image.Image:
    """Resize so that the shorter side has `target` pixels: halve with a box filter while the result stays at least
    that large, which is fast and free of aliasing, then finish with the bicubic filter."""
    while min(image.size) >= 2 * target:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = target / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def fits(image: Image.Image, size: int, small: Small, name: str) -> bool:
    """Whether the shorter side has `size` pixels. Where it has not: `TooSmallError` if such pictures are to be skipped,
    `UserError` if they are to be refused."""
    if min(image.size) >= size:
        return True
    what = f"{name} is {image.width}x{image.height} pixels, below the image size {size}"
    if small == "skip":
        raise TooSmallError(what)
    if small == "refuse":
        raise UserError(
            f"{what}: choose a smaller size, or say what becomes of such pictures: --data.small enlarge or skip in "
            "training, elsewhere --small"
        )
    return False


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels and cut the square in the middle."""
    return crops(image, size, "center")[0]


def crops(image: Image.Image, size: int, kind: CropKind, crop_range: float = 1.0) -> list[Image.Image]:
    """Squares of `size` pixels, always the same ones, after a resize of the shorter side to round(size * crop_range)
    pixels.

    `center`: the middle. `flip`: the middle and its mirror image. `ten`: top left, top right, bottom left, bottom right
    and middle, then the mirror images of these five in the same order. `crop_range` is 1 or more.
    """
    image = resize_shorter(image, round(size * crop_range))
    right, bottom = image.width - size, image.height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)] if kind == "ten" else []
    cut = [_window(image, left, top, size) for left, top in [*corners, (right // 2, bottom // 2)]]
    return cut if kind == "center" else [*cut, *map(flip, cut)]


def random_crop(
    image: Image.Image, size: int, rng: np.random.Generator, min_fraction: float, max_fraction: float
) -> Image.Image:
    """Cut a random square of `size` pixels that spans between `min_fraction` and `max_fraction` of the shorter side:
    the shorter side is first resized to a whole number of pixels drawn from
    [ceil(size / max_fraction), ceil(size / min_fraction)]."""
    smallest, largest = math.ceil(size / max_fraction), math.ceil(size / min_fraction)
    image = resize_shorter(image, int(rng.integers(smallest, largest + 1)))
    left, top = rng.integers(0, [image.width - size + 1, image.height - size + 1])
    return _window(image, int(left), int(top), size)


def flip(image: Image.Image) -> Image.Image:
    """Mirror left and right."""
    return ImageOps.mirror(image)


def turn(image: Image.Image, quarters: int) -> Image.Image:
    """Turn a square picture counter-clockwise by 0 to 3 quarters."""
    return image.transpose(_TURNS[quarters - 1]) if quarters else image


def jitter(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Change an RGB picture's light and colours a little: a value v in [0, 1] of channel c becomes
    contrast * (gain_c * v - 1/2) + 1/2, clipped, with the four factors drawn from [1 - strength, 1 + strength]."""
    contrast, *gains = rng.uniform(1 - strength, 1 + strength, 4)
    values = np.arange(256) / 255
    table = np.concatenate([contrast * (gain * values - 0.5) + 0.5 for gain in gains])
    return image.point((table * 255).round().clip(0, 255).astype(int).tolist())


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> contiguous uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def normalize(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1], any shape."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1], any shape -> uint8: rounded; values outside are clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _window(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))
