"""Images as a viewer gets them: 8-bit values, which the pixel metrics compare."""

from __future__ import annotations

from torch import Tensor


def eight_bit(images: Tensor) -> Tensor:
    """[-1, 1] -> whole numbers in [0, 255] as float32: clipped and rounded like a saved image."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255)


def eight_bit_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`eight_bit` of two batches (b, c, H, W); unequal or other shapes raise ValueError."""
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"two batches (b, c, H, W) of one shape are needed, got {tuple(x.shape)} and {tuple(y.shape)}")
    return eight_bit(x), eight_bit(y)
