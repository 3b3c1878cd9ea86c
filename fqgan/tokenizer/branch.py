"""One factor: adapter, projection, quantizer and feature-prediction head (Eq. 4, 5; section 3.2.2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fqgan.tokenizer.backbone import Normalize
from fqgan.tokenizer.blocks import LearnedPositions, TransformerBlock
from fqgan.tokenizer.fused import norm_silu_conv
from fqgan.tokenizer.quantizers.base import Quantizer


class Adapter(nn.Module):
    """F_i of Eq. 4: a transformer over the positions. (b, width, h, w) -> (b, width, h, w)."""

    def __init__(self, width: int, grid: int, depth: int, heads: int):
        super().__init__()
        self.positions = LearnedPositions(grid, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2) + self.positions(h, w)
        tokens = self.norm_out(self.blocks(self.norm_in(tokens)))
        # in the layout of the input: what is transposed here would pass on channels_last, which a small model avoids
        like = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        return tokens.transpose(1, 2).unflatten(2, (h, w)).contiguous(memory_format=like)


class FeaturePredictionHead(nn.Module):
    """Predicts a teacher's class token from quantized vectors. (b, code_dim, h, w) -> (b, teacher_dim)."""

    def __init__(self, code_dim: int, teacher_dim: int, width: int, grid: int, depth: int, heads: int):
        super().__init__()
        width = width or teacher_dim
        self.upscale = nn.Sequential(nn.Linear(code_dim, width), nn.ReLU(), nn.Linear(width, width))
        self.class_token = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.class_position = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.positions = LearnedPositions(grid, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, teacher_dim) if width != teacher_dim else nn.Identity()

    def forward(self, vectors: Tensor) -> Tensor:
        b, _, h, w = vectors.shape
        tokens = self.upscale(vectors.flatten(2).transpose(1, 2)) + self.positions(h, w)
        first = (self.class_token + self.class_position).expand(b, 1, -1).to(tokens.dtype)
        tokens = self.blocks(self.norm_in(torch.cat([first, tokens], 1)))
        return self.out(self.norm_out(tokens[:, 0]))

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        return [self.class_token, self.class_position]


class SpatialHead(nn.Sequential):
    """Predicts a teacher's map from vectors, each position by itself. (b, code_dim, h, w) -> (b, dim, h, w)."""

    def __init__(self, code_dim: int, dim: int, width: int):
        width = width or dim
        super().__init__(nn.Conv2d(code_dim, width, 1), nn.SiLU(), nn.Conv2d(width, dim, 1))


class Branch(nn.Module):
    """What one factor has of its own: adapter and projection of the base features, quantizer, and heads that predict
    teachers.

    The normalisation before the projection keeps the codes from collapsing.

    Args:
        adapter: None: the projection reads the base features.
        channels: that the projection gives; 0: another branch's projection serves this one, too.
        quantizer: None: another branch's serves this one, too.
        head: predicts a teacher's class token, and `spatial` a teacher's map; None: there is no such teacher.
    """

    def __init__(
        self,
        adapter: nn.Module | None,
        width: int,
        z_channels: int,
        channels: int,
        quantizer: Quantizer | None,
        head: nn.Module | None,
        spatial: nn.Module | None,
    ):
        super().__init__()
        self.adapter = adapter
        if channels:
            self.norm = Normalize(width)
            self.conv = nn.Conv2d(width, z_channels, 3, padding=1)
            self.projection = nn.Conv2d(z_channels, channels, 1)
        self.quantizer = quantizer
        self.head = head
        self.spatial = spatial

    def project(self, base: Tensor) -> Tensor:
        """(b, width, h, w) base features -> (b, channels, h, w) features, not normalised."""
        adapted = base if self.adapter is None else self.adapter(base)
        return self.projection(norm_silu_conv(adapted, self.norm, self.conv))
