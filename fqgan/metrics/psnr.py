"""Peak signal-to-noise ratio. Matches `skimage.metrics.peak_signal_noise_ratio` on the images saved as 8 bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers
from fqgan.metrics.pixels import eight_bit_pair
from fqgan.metrics.sums import AllReduce, Sums

PEAK = 255.0


def psnr(x: Numbers, y: Numbers) -> Tensor:
    """Two (b, c, H, W) in [-1, 1], clipped and rounded to 8 bit -> (b,) float64 in dB; inf where they are equal."""
    return _decibels(*_squared_error(x, y))


def _decibels(squared_error: Tensor, values: int) -> Tensor:
    return 10 * torch.log10(PEAK**2 * values / squared_error)


def _squared_error(x: Numbers, y: Numbers) -> tuple[Tensor, int]:
    """Two (b, c, H, W) in [-1, 1] -> (b,) float64: sum over an image of the squared 8-bit differences, exact; and how
    many values an image has."""
    x, y = eight_bit_pair(x, y)
    return (x - y).square().flatten(1).sum(1, dtype=torch.float64), x.shape[1:].numel()


class PSNR(Sums):
    """Mean over images and pooled PSNR in dB.

    Images that are reproduced exactly have an infinite PSNR: the mean leaves them out and `compute` says how many
    they are. The pooled PSNR, from the squared error over all pixels, counts them.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        super().__init__(5, torch.float64, device)

    def update(self, x: Numbers, y: Numbers) -> None:
        """Add two batches (b, c, H, W) in [-1, 1], or uint8. `UserError` for unequal shapes."""
        squared_error, values = _squared_error(x, y)
        decibels = _decibels(squared_error, values)
        finite = decibels != math.inf
        self._sums[0] += decibels.where(finite, 0).sum()
        self._sums[1] += finite.sum()
        self._sums[2] += len(decibels)
        self._sums[3] += squared_error.sum()
        self._sums[4] += len(decibels) * values

    def compute(self, all_reduce: AllReduce | None = None) -> dict[str, float]:
        """`psnr` (mean over images that differ), `psnr_pooled` (both inf if all are equal), `identical` (images).

        Without images it raises `UserError`.
        """
        decibels, finite, images, squared_error, values = self._total(all_reduce).tolist()
        if not images:
            raise UserError("PSNR of no images")
        return {
            "psnr": decibels / finite if finite else math.inf,
            "psnr_pooled": 10 * math.log10(PEAK**2 * values / squared_error) if squared_error else math.inf,
            "identical": images - finite,
        }
