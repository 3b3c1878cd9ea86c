"""Discriminators: PatchGAN judges overlapping patches, StyleGAN2's judges whole images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchGAN(nn.Module):
    """4x4 convolutions, `layers` + 1 of them of stride 2 or 1, to one logit a patch.

    (b, 3, H, W) in [-1, 1] -> (b, 1, h, w); 256 pixels and 3 layers give 30 x 30.

    Args:
        channels: width after the first convolution; doubles with each layer up to eight times it.
        layers: convolutions of stride 2 (the first included).
        norm: `batch` (the released models') or `group`, which does not depend on the other images.
    """

    def __init__(self, channels: int = 64, layers: int = 3, norm: str = "batch"):
        super().__init__()
        widths = _widths(channels, layers)
        main: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            main += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]) if norm == "batch" else nn.GroupNorm(32, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        self.apply(_initialize)

    def forward(self, *batches: Tensor) -> list[Tensor]:
        """Logits of each batch of images; batches are normalised apart from each other."""
        return [self.main(images) for images in batches]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _widths(channels: int, levels: int) -> list[int]:
    return [channels * min(2**i, 8) for i in range(levels + 1)]


class StyleGANDiscriminator(nn.Module):
    """StyleGAN2's residual discriminator (Karras et al. 2020): one logit an image.

    (b, 3, H, H) in [-1, 1] -> (b, 1). A 1x1 convolution from RGB, residual blocks that halve the resolution down to a
    grid of 4 to 7 positions a side, the minibatch standard deviation, a 3x3 convolution and two linear layers; leaky
    ReLU 0.2 throughout.

    Weights start from He's initialisation without the paper's equalised learning rate. That rate is made for Adam at
    about 2e-3 on weights of unit variance; here one optimizer serves both networks at about 2e-4, and weights of their
    true scale then move as fast, relative to their size, as a PatchGAN's.

    Args:
        channels: width at the full resolution; doubles with each halving up to eight times it.
        image_size: H, at least 32 and 4, 5, 6 or 7 times a power of two.
        group: images of a micro-batch that share a minibatch standard deviation.
    """

    def __init__(self, channels: int = 64, image_size: int = 256, group: int = 4):
        super().__init__()
        levels = image_size.bit_length() - 3
        widths, grid = _widths(channels, levels), image_size >> levels
        self.group = group
        self.from_rgb = nn.Conv2d(3, channels, 1)
        blocks = [_ResidualBlock(inputs, outputs) for inputs, outputs in pairwise(widths)]
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.linear = nn.Linear(widths[-1] * grid**2, widths[-1])
        self.out = nn.Linear(widths[-1], 1)
        self.apply(_initialize_he)
        for linear in (self.out, *(block.skip for block in blocks)):  # no activation follows: variance 1 / inputs
            nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")  # pyright: ignore[reportArgumentType]

    def forward(self, *batches: Tensor) -> list[Tensor]:
        """Logits of each batch of images; standard deviations are taken within a batch."""
        return [self._judge(images) for images in batches]

    def _judge(self, images: Tensor) -> Tensor:
        features = self.blocks(F.leaky_relu(self.from_rgb(images), 0.2))
        features = torch.cat([features, minibatch_deviation(features, self.group)], 1)
        features = F.leaky_relu(self.conv(features), 0.2)
        return self.out(F.leaky_relu(self.linear(features.flatten(1)), 0.2))


class _ResidualBlock(nn.Module):
    """(b, inputs, 2h, 2w) -> (b, outputs, h, w); both paths are filtered before they are subsampled."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.filter = LowPass(stride=1, padding=2)
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2)
        self.skip_filter = LowPass(stride=2, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        main = F.leaky_relu(self.conv(x), 0.2)
        main = F.leaky_relu(self.down(self.filter(main)), 0.2)
        return (main + self.skip(self.skip_filter(x))) * 0.5**0.5


class LowPass(nn.Module):
    """The antialiasing filter [1, 3, 3, 1] / 8 in both directions, with zero padding and a stride."""

    def __init__(self, stride: int, padding: int):
        super().__init__()
        self.stride, self.padding = stride, padding
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.get_buffer("kernel").expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=channels)


def minibatch_deviation(features: Tensor, group: int) -> Tensor:
    """Standard deviation over a group of images, mean over channels and positions: (b, c, h, w) -> (b, 1, h, w).

    Groups are those of `batch_groups`.
    """
    b, _, h, w = features.shape
    groups = batch_groups(features, group)
    deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return deviation[:, None].expand(-1, groups.shape[1]).reshape(b, 1, 1, 1).expand(b, 1, h, w)


def batch_groups(features: Tensor, most: int) -> Tensor:
    """(b, ...) -> (b / n, n, ...) float32: runs of n successive images, n the largest number up to `most` that divides
    b."""
    b = len(features)
    size = next(n for n in range(min(b, most), 0, -1) if b % n == 0)
    return features.float().unflatten(0, (b // size, size))


def _initialize_he(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, 0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@contextmanager
def statistics_kept(discriminator: nn.Module) -> Iterator[nn.Module]:
    """The discriminator with its running statistics untouched, whatever passes through it."""
    norms = [m for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False  # in training mode: batch statistics, nothing recorded
    try:
        yield discriminator
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def as_critic(discriminator: nn.Module) -> Iterator[nn.Module]:
    """The discriminator for the generator's phase: no gradient to its weights, running statistics untouched."""
    discriminator.requires_grad_(False)
    try:
        with statistics_kept(discriminator) as critic:
            yield critic
    finally:
        discriminator.requires_grad_(True)
