"""Llama blocks with two-dimensional rotary positions: RMSNorm, causal attention, SwiGLU (paper section 3.3)."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.config import GeneratorConfig
from fqgan.engine.speed import Recomputing


@lru_cache(maxsize=16)
def rotary_table(grid: tuple[int, int], head_dim: int, base: float, legacy: bool, device: torch.device) -> Tensor:
    """Cosines and sines of the rotary positions, (1 + h * w, head_dim / 2, 2) float32.

    Row 0 is the class position's, row 1 + t that of token t's cell in raster order. The first half of a head's
    channels turns with the cell's row, the second with its column; each axis has head_dim / 4 frequencies
    base^(-4 j / head_dim). The class position stands at cell (-1, -1), a place of its own; with `legacy` its row is
    zero, as in the released models.
    """
    h, w = grid
    with torch.inference_mode(False):  # it is kept, and training may need it later
        frequencies = base ** (-torch.arange(0, head_dim, 4, dtype=torch.float32) / head_dim)
        cells = torch.cartesian_prod(torch.arange(h), torch.arange(w)).view(h * w, 2)
        cells = torch.cat([torch.full((1, 2), -1), cells]).float()
        angles = (cells[:, :, None] * frequencies).flatten(1)
        table = torch.stack([angles.cos(), angles.sin()], -1)
        if legacy:
            table[0] = 0
        return table.to(device)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of x (..., n, hd) by its position's angle; table (n, hd / 2, 2)."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.is_cpu and not torch.compiler.is_compiling():  # one kernel, a quarter of the time; compilers fuse the other
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)).flatten(-2).type_as(x)
    cos, sin = table.unbind(-1)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).type_as(x)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (b, heads, n, hd) to k and v (b, kv_heads, n, hd), in the type of v."""
    attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=k.shape[1] < q.shape[1])
    if not v.is_cpu:
        return attend(q, k, v)
    # two positions, as in the head of a dual generator: four times as fast as a kernel (LOG.md)
    attend = _attend_two if q.shape == k.shape and q.shape[2] == 2 else attend
    if v.dtype != torch.bfloat16:
        return attend(q, k, v)
    with torch.autocast("cpu", enabled=False):  # there the fused kernel is up to ten times as fast in float32 (LOG.md)
        return attend(q.float(), k.float(), v.float()).to(v.dtype)


def _attend_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over two positions: the first one's value, and a mean of both by a softmax over two scores."""
    first, second = v.unbind(2)
    scores = (q[:, :, 1] * (k[:, :, 1] - k[:, :, 0])).sum(-1, keepdim=True)
    return torch.stack([first, torch.lerp(first, second, (scores * q.shape[-1] ** -0.5).sigmoid())], 2)


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the wider type of input and weight. torch has no fused kernel for two types, which meet in bf16: by
    autocast in front of QK-norm, and where sharded weights are gathered in it."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.eps)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x, scaled and shifted, where 0 is as it was."""
    return x * (1 + scale) + shift


class Attention(nn.Module):
    """Causal self-attention with rotary positions and, if wanted, grouped keys and values and QK-norm."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.head_dim = config.width // config.heads
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        norm = (lambda: RMSNorm(self.head_dim, config.norm_eps)) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = self.qkv(x).unflatten(-1, (sum(sizes), -1)).transpose(1, 2).split(sizes, 1)
        q, k = rotate(self.q_norm(q), rotary), rotate(self.k_norm(k), rotary)
        y = _attend(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Modulation(nn.Module):
    """adaLN-zero: a condition (..., d) -> shift, scale and gate of both halves of a block, six of (..., d).

    They start as 0: the block adds nothing (DiT, Peebles & Xie 2022)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)

    def reset(self) -> None:
        """Start anew."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(condition)).chunk(6, -1)


class Block(Recomputing):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)). (b, n, d) -> (b, n, d).

    Args:
        conditioned: with a `Modulation`, whose condition (b, d) `forward` takes in the end.
    """

    def __init__(self, config: GeneratorConfig, conditioned: bool = False):
        super().__init__()
        self.modulation = Modulation(config.width) if conditioned else None
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)
        self.dropout = config.dropout

    def compute(self, x: Tensor, rotary: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.modulation is None or condition is None:
            x = x + self._drop(self.attention(self.attention_norm(x), rotary))
            return x + self._drop(self._mlp(self.mlp_norm(x)))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition[:, None])
        x = x + gate * self._drop(self.attention(modulated(self.attention_norm(x), shift, scale), rotary))
        return x + mlp_gate * self._drop(self._mlp(modulated(self.mlp_norm(x), mlp_shift, mlp_scale)))

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
