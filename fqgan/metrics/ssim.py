"""Structural similarity (Wang et al. 2004, Eq. 13) with the paper's Gaussian window.

Matches `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
data_range=255, channel_axis=...)` on the images saved as 8 bit, and Wang's original: only positions whose window
lies inside the image count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers
from fqgan.metrics.pixels import eight_bit_pair
from fqgan.metrics.sums import AllReduce, Sums

WINDOW = 11
SIGMA = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2


def ssim(x: Numbers, y: Numbers) -> Tensor:
    """Two (b, c, H, W) in [-1, 1], clipped and rounded to 8 bit -> (b,) float64 in [-1, 1], the channels' average.

    Images smaller than the window of 11 pixels raise `UserError`.
    """
    x, y = map(Tensor.double, eight_bit_pair(x, y))  # variances are small differences of large squares
    if min(x.shape[-2:]) < WINDOW:
        raise UserError(f"SSIM needs images of at least {WINDOW} pixels a side, got {x.shape[-2]} x {x.shape[-1]}")
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return (luminance * structure).mean((1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """Gaussian average over the windows that lie inside: (b, c, H, W) -> (b, c, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, dtype=images.dtype) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = (weights / weights.sum()).tolist()
    for dim in (2, 3):
        length = images.shape[dim] - WINDOW + 1
        images = torch.stack([w * images.narrow(dim, i, length) for i, w in enumerate(weights)]).sum(0)
    return images


class SSIM(Sums):
    """Mean SSIM over images."""

    def __init__(self, device: torch.device | str = "cpu"):
        super().__init__(2, torch.float64, device)  # sum of SSIMs, images

    def update(self, x: Numbers, y: Numbers) -> None:
        """Add two batches (b, c, H, W) in [-1, 1], or uint8. `UserError` for unequal shapes."""
        values = ssim(x, y)
        self._sums += torch.stack([values.sum(), torch.ones_like(values).sum()])

    def compute(self, all_reduce: AllReduce | None = None) -> dict[str, float]:
        """`ssim` in [-1, 1]. Without images it raises `UserError`."""
        total, images = self._total(all_reduce).tolist()
        if not images:
            raise UserError("SSIM of no images")
        return {"ssim": total / images}
