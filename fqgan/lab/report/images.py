"""Pictures as PNG inside the page."""

from __future__ import annotations

import base64
import colorsys
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from fqgan.lab.report.markup import Html, element
from fqgan.tokenizer.pictures import to_image

_GOLDEN = 0.6180339887498949  # steps of the golden ratio never come back near a hue soon
_SHADES = ((0.55, 0.62), (0.75, 0.42), (0.45, 0.80))  # saturation and lightness


def picture(image: Tensor, alt: str) -> Html:
    """A (3, H, W) tensor in [-1, 1], at its own pixels: the style enlarges it without smoothing."""
    return png(to_image(image), alt)


def code_map(codes: Tensor, codebook_size: int, alt: str) -> Html:
    """Codes (h, w) of one factor as a picture of h x w pixels: equal codes have equal colours."""
    return png(Image.fromarray(palette(codebook_size)[codes.numpy()]), alt)


def png(image: Image.Image, alt: str) -> Html:
    """An `<img>` that carries its data."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return embedded(buffer.getvalue(), "image/png", alt)


def embedded(data: bytes, kind: str, alt: str) -> Html:
    """An `<img>` of any kind that carries its data."""
    return element("img", src=f"data:{kind};base64,{base64.b64encode(data).decode()}", alt=alt)


def palette(size: int) -> npt.NDArray[np.uint8]:
    """(size, 3): a fixed colour for each code; neighbouring numbers get unlike colours."""
    colours = []
    for index in range(size):
        saturation, lightness = _SHADES[index % len(_SHADES)]
        colours.append(colorsys.hls_to_rgb(index * _GOLDEN % 1, lightness, saturation))
    return np.round(np.array(colours) * 255).astype(np.uint8)
