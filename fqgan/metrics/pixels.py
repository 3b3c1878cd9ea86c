"""Images as a viewer gets them: 8-bit values, which the pixel metrics compare."""

from __future__ import annotations

from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_images
from fqgan.engine.devices import exact_device


def eight_bit(images: Tensor) -> Tensor:
    """[-1, 1] -> whole numbers in [0, 255] as float32: clipped and rounded like a saved image."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255)


def eight_bit_pair(x: Numbers, y: Numbers) -> tuple[Tensor, Tensor]:
    """`eight_bit` of two batches (b, c, H, W), floating point or uint8, on the device of the first, or on the
    CPU where that has no float64; unequal or other shapes raise `UserError`. NaN stays NaN."""
    x = as_images(x, channels=None, values=False)
    x = x.to(exact_device(x.device))
    y = as_images(y, x.device, channels=None, values=False)
    if x.shape != y.shape:
        raise UserError(f"two batches (b, c, H, W) of one shape are needed, got {tuple(x.shape)} and {tuple(y.shape)}")
    return eight_bit(x), eight_bit(y)
