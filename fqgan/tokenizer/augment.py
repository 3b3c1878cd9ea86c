"""DiffAug: differentiable changes of what a discriminator sees (Zhao et al. 2020), with the published strengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("colour", "translation", "cutout")


def augmented(images: Tensor, kinds: Sequence[str]) -> Tensor:
    """(b, 3, H, W) -> the same in float32, each image changed at random by those of the `KINDS` that are named, in
    their order; without any, the images as they are. Gradients pass. All draws come from torch's generator."""
    changes = {"colour": recoloured, "translation": translated, "cutout": cut_out}
    for kind in KINDS:
        if kind in kinds:
            images = changes[kind](images.float())
    return images


def recoloured(images: Tensor) -> Tensor:
    """Brightness: plus [-0.5, 0.5]. Saturation: [0, 2] times the difference from the mean of the channels. Contrast:
    [0.5, 1.5] times the difference from the mean of the image."""
    brightness, saturation, contrast = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    images = images + (brightness - 0.5)
    images = _scaled(images, (1,), 2 * saturation)
    return _scaled(images, (1, 2, 3), contrast + 0.5)


def _scaled(images: Tensor, dims: tuple[int, ...], factor: Tensor) -> Tensor:
    mean = images.mean(dims, keepdim=True)
    return mean + (images - mean) * factor


def translated(images: Tensor, share: float = 0.125) -> Tensor:
    """Shifted by whole pixels, up to `share` of each side; 0 comes in."""
    for dim in (2, 3):
        size, most = images.shape[dim], round(share * images.shape[dim])
        shift = torch.randint(-most, most + 1, (len(images), 1), device=images.device)
        places = torch.arange(size, device=images.device) + shift
        shape = [len(images), 1, 1, 1]
        shape[dim] = size
        inside = ((places >= 0) & (places < size)).view(shape)
        images = images.gather(dim, places.clamp(0, size - 1).view(shape).expand_as(images)) * inside
    return images


def cut_out(images: Tensor, share: float = 0.5) -> Tensor:
    """A rectangle of `share` of each side set to 0; its middle is anywhere in the image, and parts may lie outside."""
    inside = torch.ones(1, device=images.device, dtype=torch.bool)
    for dim in (2, 3):
        size, cut = images.shape[dim], round(share * images.shape[dim])
        start = torch.randint(0, size + (1 - cut % 2), (len(images), 1), device=images.device) - cut // 2
        offset = torch.arange(size, device=images.device) - start
        shape = [len(images), 1, 1, 1]
        shape[dim] = size
        inside = inside & ((offset >= 0) & (offset < cut)).view(shape)
    return images * ~inside
