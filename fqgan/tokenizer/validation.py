"""How well images are reproduced, by a tokenizer or by anything else that maps images to images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.data.transforms import normalize, to_uint8
from fqgan.engine.devices import exact_device
from fqgan.engine.distributed import all_reduce_sum
from fqgan.metrics.psnr import PSNR
from fqgan.metrics.ssim import SSIM
from fqgan.metrics.usage import CodeUsage
from fqgan.nets.sharing import sharing
from fqgan.tokenizer.protocol import Tokenizer

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
Distance = Callable[[Tensor, Tensor], Tensor]
Collect = Callable[[Tensor, Tensor], None]


class Mean:
    """A running mean of per-image values."""

    def __init__(self, device: torch.device | str):
        self._sums = torch.zeros(2, dtype=torch.float64, device=exact_device(device))

    def update(self, values: Tensor) -> None:
        """Add (b,) values."""
        values = values.to(self._sums.device).double()
        self._sums += torch.stack([values.sum(), values.new_tensor(len(values))])

    def compute(self) -> float:
        """The mean over all ranks."""
        total, count = all_reduce_sum(self._sums.clone()).tolist()
        return total / count


class Scores:
    """Compares images with their reconstructions, over all ranks.

    Args:
        perceptual: distance of two batches (b, 3, H, W) -> (b,), if wanted.
        classes: names, for scores of each class; labels must then lie in [0, len(classes)).
        collect: called with the images and with their reconstructions, uint8 (b, 3, H, W), and their indices (b,).
    """

    def __init__(
        self,
        device: torch.device | str,
        perceptual: Distance | None = None,
        classes: Sequence[str] = (),
        collect: tuple[Collect, Collect] | None = None,
    ):
        self.perceptual, self._collect = perceptual, collect
        self._psnr, self._ssim, self._distance = PSNR(device), SSIM(device), Mean(device)
        self._classes = {name: (PSNR(device), Mean(device)) for name in classes}

    @torch.no_grad()
    @sharing()  # the distances ask the packaged network for the same images
    def update(self, images: Tensor, reconstructions: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        """Add a batch of images (b, 3, H, W) in [-1, 1], their reconstructions and labels (b,); with `collect`, their
        indices (b,) too."""
        reconstructions = reconstructions.float().clamp(-1, 1)
        self._psnr.update(images, reconstructions)
        self._ssim.update(images, reconstructions)
        distances = self.perceptual(reconstructions, images) if self.perceptual else None
        if distances is not None:
            self._distance.update(distances)
        if self._collect and indices is not None:
            for collect, seen in zip(self._collect, (images, reconstructions), strict=True):
                collect(to_uint8(seen), indices)
        for label, (psnr, mean) in enumerate(self._classes.values()):
            chosen = labels == label
            if chosen.any():
                psnr.update(images[chosen], reconstructions[chosen])
                if distances is not None:
                    mean.update(distances[chosen])

    def compute(self) -> dict[str, Any]:
        """`psnr` and `psnr_pooled` in dB, `ssim`, and what was asked for: `perceptual`, and under `classes` the pooled
        PSNR and the perceptual distance of each class that has pictures."""
        try:
            pixels = self._psnr.compute(all_reduce_sum)
        except ValueError:
            raise UserError("there is nothing to score: not one picture of the data could be read") from None
        scores: dict[str, Any] = {name: pixels[name] for name in ("psnr", "psnr_pooled")}
        scores |= self._ssim.compute(all_reduce_sum)
        if self.perceptual:
            scores["perceptual"] = self._distance.compute()
        if self._classes:
            scores["classes"] = {}
            for name, (psnr, mean) in self._classes.items():
                try:
                    pixels = psnr.compute(all_reduce_sum)
                except ValueError:  # on all ranks alike: none of its pictures was asked for, or could be read
                    continue
                scores["classes"][name] = {"psnr_pooled": pixels["psnr_pooled"]}
                if self.perceptual:
                    scores["classes"][name]["perceptual"] = mean.compute()
        return scores


@torch.inference_mode()
def score_reconstructions(
    model: Tokenizer, batches: Batches, scores: Scores, device: torch.device | str
) -> dict[str, Any]:
    """Scores of a tokenizer's reconstructions, and under `factors` the use of each codebook, if it has any."""
    meters = [CodeUsage(size, device) for size in model.codebook_sizes]
    for raw, labels, indices in batches:
        images = normalize(raw.to(device))
        codes = model.encode(images, values=False)
        for i, meter in enumerate(meters):
            meter.update(codes[:, i])
        scores.update(images, model.decode(codes, values=False), labels.to(device), indices)
    numbers = scores.compute()
    factors = {
        factor.name: meter.compute(all_reduce_sum)
        for factor, meter in zip(model.config.factors, meters, strict=bool(meters))
    }
    return {**numbers, "factors": factors}


@torch.inference_mode()
def evaluate_mean_colour(patch: int, batches: Batches, scores: Scores, device: torch.device | str) -> dict[str, Any]:
    """Scores of the baseline that replaces each patch of `patch` pixels a side by its mean colour."""
    for raw, labels, indices in batches:
        images = normalize(raw.to(device))
        scores.update(images, mean_colour(images, patch), labels.to(device), indices)
    return scores.compute()


def mean_colour(images: Tensor, patch: int) -> Tensor:
    """(b, 3, H, W) with each patch replaced by its mean colour, in full precision: no code is as free as this."""
    means = nn.functional.avg_pool2d(images, patch)
    return nn.functional.interpolate(means, scale_factor=float(patch), mode="nearest")
