"""A discriminator on the features of a frozen network at several depths (StyleGAN-T's, Sauer et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fqgan.base.errors import UserError
from fqgan.nets.features import Teacher
from fqgan.tokenizer.discriminator import batch_groups

_HEADS = 5
"""Where no depths are chosen, as in the paper."""
_SIDE = 16
"""Positions a side of a map, above which a head halves it first: a ViT's of 14-pixel patches at 224 pixels."""
_VIRTUAL_BATCH = 8


class FrozenDiscriminator(nn.Module):
    """Small heads, each on the map of a frozen network's features at one depth.

    (b, 3, H, W) in [-1, 1] -> (b, n): the logits of all positions of all heads. Images are resized to the backbone's
    own size. Each head is the paper's: a 1x1 convolution, a residual block, a 1x1 convolution to the logits, with
    spectral norm and leaky ReLU 0.2 throughout. Its residual block sees 3x3 positions, where the paper's sees nine of a
    row of tokens. Maps of more than 16 positions a side, as convolutional networks have early, are halved by 4x4
    convolutions of stride 2 first, so that no head outvotes the others by its number of positions.

    The backbone is no sub-module: no state dict, optimizer or wrapper for several ranks knows it, and whoever made it
    moves it to a device. Gradients pass it to the images.

    Args:
        backbone: the frozen network.
        depths: of the backbone's maps, from 1; none: up to five, equally spaced, the last one among them.
        channels: width of each head.
        norm: `batch` over runs of at most eight successive images (the paper's virtual batches), or `group`.

    Raises:
        UserError: depths that the backbone does not have.
    """

    def __init__(self, backbone: Teacher, depths: Sequence[int] = (), channels: int = 64, norm: str = "batch"):
        super().__init__()
        self._backbone = [backbone]
        device = next(backbone.parameters()).device
        with torch.no_grad():
            maps = backbone.maps(torch.zeros(1, 3, backbone.size, backbone.size, device=device))
        count = len(maps)
        if beyond := [depth for depth in depths if depth > count]:
            raise UserError(f"discriminator.depths: {backbone.name} has {count}, not {beyond[0]}")
        heads = min(_HEADS, count)
        self.depths = tuple(depths) or tuple(-(-count * i // heads) for i in range(1, heads + 1))
        chosen = [maps[depth - 1].shape for depth in self.depths]
        self.heads = nn.ModuleList(_Head(shape[1], shape[2], channels, norm) for shape in chosen)

    def forward(self, *batches: Tensor) -> list[Tensor]:
        """Logits of each batch of images; batches are normalised apart from each other."""
        return [self._judge(images) for images in batches]

    def _judge(self, images: Tensor) -> Tensor:
        maps = self._backbone[0].maps(images)
        return torch.cat([head(maps[depth - 1]) for head, depth in zip(self.heads, self.depths, strict=True)], 1)


class _Head(nn.Module):
    """(b, inputs, side, side) -> (b, logits)."""

    def __init__(self, inputs: int, side: int, channels: int, norm: str):
        super().__init__()
        first: list[nn.Module] = []
        while side > _SIDE:
            first.append(_block(inputs, channels, 4, norm, stride=2))
            inputs, side = channels, side // 2
        self.first = nn.Sequential(*first, _block(inputs, channels, 1, norm))
        self.residual = _block(channels, channels, 3, norm)
        self.out = _convolution(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out((x + self.residual(x)) * 0.5**0.5).flatten(1)


def _block(inputs: int, outputs: int, kernel: int, norm: str, stride: int = 1) -> nn.Sequential:
    normalised = VirtualBatchNorm(outputs) if norm == "batch" else nn.GroupNorm(32, outputs)
    return nn.Sequential(_convolution(inputs, outputs, kernel, stride, bias=False), normalised, nn.LeakyReLU(0.2))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Module:
    convolution = _Convolution(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=bias)
    return spectral_norm(convolution, eps=1e-8)


class _Convolution(nn.Conv2d):
    """A convolution whose weight is made in float32, whatever autocast is on: spectral norm's products are not to be
    rounded."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            weight = self.weight
        return self._conv_forward(input, weight, self.bias)


class VirtualBatchNorm(nn.Module):
    """Batch norm over groups of at most eight successive images, in training and evaluation alike; no running averages.

    (b, channels, h, w) -> the same. Groups are as even as b allows (`batch_groups`).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        groups = batch_groups(x, _VIRTUAL_BATCH)
        variance, mean = torch.var_mean(groups, (1, 3, 4), correction=0, keepdim=True)
        normalised = ((groups - mean) * torch.rsqrt(variance + 1e-5)).flatten(0, 1)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]
