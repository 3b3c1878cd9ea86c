"""Pictures that clients send, and pictures that they get. Nothing is written to disk."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import re
from contextlib import suppress

import torch
from PIL import Image, ImageOps
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.data.decode import decode_image
from fqgan.data.sources.photos import PHOTOS, photograph
from fqgan.data.transforms import center_crop, to_tensor
from fqgan.tokenizer.pictures import to_image

MOST_PIXELS = 2**25
"""Of a picture that somebody sends, as its header says: 100 MB as RGB."""
NARROWEST = 32
"""Ratio of its sides at most: a crop enlarges the shorter one to the model's size."""
_GREY = 0.0


def received(picture: bytes | str, height: int, width: int) -> Tensor:
    """(3, height, width) uint8: the middle of a picture, resized.

    Args:
        picture: a file's bytes, a data URL, base64, or the name of a packaged photograph.

    Raises:
        UserError: no picture, one in an unknown format, broken, too large or too narrow.
    """
    if isinstance(picture, str) and re.fullmatch(r"[a-z]{1,40}", picture):
        image = photograph(picture)
    else:
        data = picture if isinstance(picture, bytes) else _bytes(picture)
        if not data:
            raise UserError("the picture is empty")
        _check_size(data)
        image = decode_image(data, "the picture")
    if max(image.size) > NARROWEST * min(image.size):
        raise UserError(f"the picture is too narrow: one side is more than {NARROWEST} times the other")
    if height == width:
        return to_tensor(center_crop(image, height))
    return to_tensor(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def _bytes(text: str) -> bytes:
    head, comma, body = text.partition(",") if text.startswith("data:") else ("", ",", text)
    if not comma or (head and not head.endswith(";base64")):
        raise UserError("the picture's data URL must be data:image/png;base64,... or of another kind of picture")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        names = ", ".join(photo.name for photo in PHOTOS)
        raise UserError(f"the picture is neither a file, nor base64, nor a packaged photograph ({names})") from None


def _check_size(data: bytes) -> None:
    """From the header, before anything is decoded. What has none is told apart later."""
    width = height = 0
    with suppress(Exception), Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    if width * height > MOST_PIXELS:
        raise UserError(f"the picture has {width}x{height} pixels, more than the {MOST_PIXELS:,} allowed")


def png(image: Tensor) -> bytes:
    """A file of a picture (3, H, W) in [-1, 1]."""
    return _file(to_image(image))


def stored_png(image: Tensor) -> bytes:
    """The same of one (3, H, W) in uint8."""
    return _file(Image.fromarray(image.permute(1, 2, 0).numpy()))


@functools.cache
def photograph_png(name: str) -> bytes:
    """A packaged photograph. `UserError` where it is not there."""
    return _file(photograph(name))


def packaged() -> list[str]:
    """Names of the packaged photographs; none where the packages that hold them are not installed."""
    names: list[str] = []
    for photo in PHOTOS:
        with suppress(UserError):
            photograph(photo.name)
            names.append(photo.name)
    return names


def unfinished_png(image: Tensor, grid: tuple[int, int], positions: int) -> bytes:
    """A picture of which the first positions alone are there: the others are grey."""
    there = (torch.arange(grid[0] * grid[1]) < positions).view(1, 1, *grid).float()
    mask = torch.nn.functional.interpolate(there, image.shape[1:], mode="nearest")[0].bool()
    return png(image.masked_fill(~mask, _GREY))


def data_url(file: bytes) -> str:
    """A PNG as a browser takes it."""
    return "data:image/png;base64," + base64.b64encode(file).decode()


def _file(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
