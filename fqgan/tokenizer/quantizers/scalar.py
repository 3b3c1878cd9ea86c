"""Finite scalar quantization (Mentzer et al. 2023): each channel is rounded to a few levels; nothing is learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer, full_precision

_EPS = 1e-3  # how far the bounded values stay inside of the outer levels


class ScalarQuantizer(Quantizer):
    """`fsq`: codes of L_1 x L_2 x ... levels, one number of levels a channel, K their product.

    A channel is bounded to its levels by tanh, f(z) = (L - 1)(1 + eps)/2 tanh(z + shift) - offset, with offset and
    shift for an even L, and rounded (sections 3 and A.1). Vectors lie in [-1, 1]. A code is sum_i digit_i L_1 ...
    L_(i-1). No term pulls features and codes to each other, and there is no entropy loss.

    Args:
        levels: of each channel, at least 2.
    """

    def __init__(self, levels: Sequence[int], gradient: str = "straight-through"):
        super().__init__(math.prod(levels), len(levels), gradient=gradient)
        self.levels = tuple(levels)

    @classmethod
    def of(cls, factor: FactorConfig, entropy_temperature: float, gradient: str) -> Self:
        if not factor.levels:
            raise UserError(f"factor {factor.name}: fsq needs levels, such as --model.factors.0.levels 8 8 8 6 5")
        return cls(factor.levels, gradient)

    def forward(self, z: Tensor, entropy: bool = False) -> Quantized:
        """Quantize (b, D, h, w) features; the entropy loss is 0."""
        with torch.autocast(z.device.type, enabled=False):
            bounded, half = self._bounded(full_precision(z)), self._column([n // 2 for n in self.levels], z)
            rounded = bounded.detach().round()
            codes = ((rounded + half).long() * self._places(z)).sum(1)
            return Quantized(codes, bounded / half, rounded / half, bounded.new_zeros(()), self.gradient, commits=False)

    def embed(self, codes: Tensor) -> Tensor:
        levels, half = self._column(self.levels, codes), self._column([n // 2 for n in self.levels], codes)
        return (codes[:, None] // self._places(codes) % levels - half) / half

    def near(self, codes: Tensor, neighbours: int) -> Tensor:
        """A code one level up or down in a drawn channel, whatever `neighbours`; from an outer level inwards."""
        channel, up = torch.randint_like(codes, self.code_dim), torch.randint_like(codes, 2)
        place, levels = (x.flatten()[channel] for x in (self._places(codes), self._column(self.levels, codes)))
        digit = codes // place % levels
        up = torch.where(digit == 0, 1, torch.where(digit == levels - 1, 0, up))
        return codes + (2 * up - 1) * place

    def _bounded(self, z: Tensor) -> Tensor:
        """Values that round to an integer in [-(L // 2), (L - 1) // 2]."""
        reach = [(n - 1) * (1 + _EPS) / 2 for n in self.levels]
        offset = [0.5 * (1 - n % 2) for n in self.levels]
        shift = [math.atanh(o / r) for o, r in zip(offset, reach, strict=True)]
        return (z + self._column(shift, z)).tanh() * self._column(reach, z) - self._column(offset, z)

    def _places(self, like: Tensor) -> Tensor:
        """(D, 1, 1) value of each digit."""
        return self._column([math.prod(self.levels[:i]) for i in range(len(self.levels))], like)

    def _column(self, values: Sequence[float], like: Tensor) -> Tensor:
        """(D, 1, 1) on the device of `like`; fractions in its type."""
        whole = all(isinstance(value, int) for value in values)
        dtype = torch.int64 if whole else torch.promote_types(like.dtype, torch.float32)
        return torch.tensor(values, dtype=dtype, device=like.device)[:, None, None]
