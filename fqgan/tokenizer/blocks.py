"""Layers that adapters and feature-prediction heads share: pre-norm transformer blocks, learned positions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.engine.speed import Recomputing

_FEW_POSITIONS = 512  # up to here a whole score matrix beats the fused kernel in bf16 on a CPU


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the positions: three (b, heads, n, d) -> (b, heads, n, d).

    The fused kernel, but for few positions in bf16 on a CPU: there two matrix products take half the time and less.
    """
    if q.is_cpu and q.dtype == torch.bfloat16 and q.shape[-2] <= _FEW_POSITIONS:
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Block(Recomputing):
    """One map in, one map out."""


class TransformerBlock(Block):
    """Pre-norm self-attention and an MLP of four times the width (exact GELU). (b, n, width) -> (b, n, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def compute(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.attention_norm(x))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.attention_out(attend(q, k, v).transpose(1, 2).flatten(2))


class LearnedPositions(nn.Module):
    """A learned vector for each cell of a square grid, interpolated for other grids."""

    def __init__(self, grid: int, width: int):
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.randn(grid * grid, width) * width**-0.5)

    def forward(self, h: int, w: int) -> Tensor:
        """(h * w, width) in raster order."""
        if (h, w) == (self.grid, self.grid):
            return self.table
        table = self.table.float().view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        return F.interpolate(table, (h, w), mode="bicubic", align_corners=False)[0].flatten(1).T.to(self.table.dtype)

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        return [self.table]
