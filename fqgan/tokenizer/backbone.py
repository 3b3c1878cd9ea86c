"""VQGAN's convolutional encoder and decoder (Eq. 3 and 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.tokenizer.blocks import Block, attend
from fqgan.tokenizer.fused import norm_silu_conv, upsample_conv

_PIXEL_CHANNELS = 8  # between the shuffled blocks and the pixels of a decoder with a stem


class Normalize(nn.GroupNorm):
    """GroupNorm over 32 groups, eps 1e-6."""

    def __init__(self, channels: int):
        super().__init__(32, channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        # as nn.GroupNorm's, without its check: a group of one value, of one position, is normalised to 0
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)


class ResBlock(Block):
    """Two normalised 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.norm1 = Normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = Normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def compute(self, x: Tensor) -> Tensor:
        h = norm_silu_conv(x, self.norm1, self.conv1)
        if self.training and self.dropout.p:
            h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        else:
            h = norm_silu_conv(h, self.norm2, self.conv2)
        return self.shortcut(x) + h


class Attention(Block):
    """Single-head self-attention over all positions, residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = Normalize(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def compute(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = (layer(n).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        h = attend(q, k, v).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.out(h)


class Downsample(nn.Module):
    """Stride-2 convolution after padding right and bottom by one."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv(x, self.conv)


class Smooth(nn.Conv2d):
    """A convolution of few channels at full resolution: in channels_last on a CPU, where it takes half the time."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu:
            return super().forward(x)
        return super().forward(x.contiguous(memory_format=torch.channels_last)).contiguous()


Attentive = Literal["lowest", "middle", "nowhere"]
"""Where a network has attention: after each residual block of the lowest resolution and in the middle, in the middle
alone, or nowhere."""


def _level(channels: Sequence[int], attention: bool, dropout: float) -> nn.Sequential:
    """Residual blocks from each width to the next, with attention after each if asked for."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(channels):
        layers.append(ResBlock(in_channels, out_channels, dropout))
        if attention:
            layers.append(Attention(out_channels))
    return nn.Sequential(*layers)


def _middle(channels: int, attention: Attentive, dropout: float) -> nn.Sequential:
    blocks = [ResBlock(channels, channels, dropout), ResBlock(channels, channels, dropout)]
    between = [] if attention == "nowhere" else [Attention(channels)]
    return nn.Sequential(blocks[0], *between, blocks[1])


@torch.no_grad()
def _start_without_checkerboard(conv: nn.Conv2d, stem: int) -> None:
    """Start the pixels of a block equal, so that their differences are learnt, not drawn (ICNR, Aitken et al. 2017)."""
    for parameter in (conv.weight, conv.bias):
        assert parameter is not None
        blocks = parameter.unflatten(0, (-1, stem**2))
        blocks.copy_(blocks[:, :1].clone().expand_as(blocks))


def _unshuffle(images: Tensor, stem: int) -> Tensor:
    """Blocks of stem x stem pixels as channels: (b, c, H, W) -> (b, c * stem^2, H / stem, W / stem)."""
    if images.numel():
        return F.pixel_unshuffle(images, stem)
    b, c, height, width = images.shape  # torch 2.11 to 2.15 hands no images back in the shape that they came in
    return images.new_empty(b, c * stem**2, height // stem, width // stem)


class Encoder(nn.Module):
    """Images (b, 3, H, W) -> base features (b, channels * multipliers[-1], H/f, W/f) (Eq. 3).

    f = stem * 2^(levels - 1). The output is not normalised; each branch does that for itself.
    """

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        res_blocks: int,
        attention: Attentive,
        stem: int,
        dropout: float,
    ):
        super().__init__()
        widths = [channels * m for m in multipliers]
        self.stem = stem
        self.conv_in = nn.Conv2d(3 * stem**2, channels, 3, padding=1)
        self.levels = nn.ModuleList()
        last, in_channels = len(widths) - 1, channels
        for i, width in enumerate(widths):
            level = _level([in_channels] + [width] * res_blocks, attention == "lowest" and i == last, dropout)
            if i < last:
                level.append(Downsample(width))
            self.levels.append(level)
            in_channels = width
        self.middle = _middle(in_channels, attention, dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(_unshuffle(images, self.stem))
        for level in self.levels:
            x = level(x)
        return self.middle(x)


class Decoder(nn.Module):
    """Latent features (b, z_channels, h, w) -> images (b, 3, h * f, w * f), not clipped (Eq. 6)."""

    def __init__(
        self,
        channels: int,
        multipliers: Sequence[int],
        res_blocks: int,
        attention: Attentive,
        stem: int,
        z_channels: int,
        dropout: float,
    ):
        super().__init__()
        widths = [channels * m for m in reversed(multipliers)]
        self.stem = stem
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.middle = _middle(widths[0], attention, dropout)
        self.levels = nn.ModuleList()
        last, in_channels = len(widths) - 1, widths[0]
        for i, width in enumerate(widths):
            level = _level([in_channels] + [width] * (res_blocks + 1), attention == "lowest" and i == 0, dropout)
            if i < last:
                level.append(Upsample(width))
            self.levels.append(level)
            in_channels = width
        self.norm_out = Normalize(in_channels)
        channels_out = 3 if stem == 1 else _PIXEL_CHANNELS
        self.conv_out = nn.Conv2d(in_channels, channels_out * stem**2, 3, padding=1)
        _start_without_checkerboard(self.conv_out, stem)
        self.smooth = nn.Identity() if stem == 1 else Smooth(channels_out, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        x = norm_silu_conv(x, self.norm_out, self.conv_out)
        return self.smooth(F.pixel_shuffle(x, self.stem))

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        """The layers that make the pixels."""
        return [*self.conv_out.parameters(), *self.smooth.parameters()]
