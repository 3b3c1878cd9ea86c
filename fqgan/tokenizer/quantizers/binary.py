"""A bit a channel, without a table: LFQ (Yu et al. 2023) and BSQ (Zhao et al. 2024)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.engine.distributed import all_reduce_mean
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer, as_rows


class BinaryQuantizer(Quantizer):
    """Codes of D bits, the sign of each channel, the first channel the highest bit: K = 2^D.

    Soft assignments softmax(-d / tau) with the squared distance d to all 2^D codes factorize: bit i is 1 with the
    probability sigmoid(4 a z_i / tau) on its own, where codes are +-a. So the entropy of an assignment is the sum of
    its bits' entropies, exactly, and no code needs to be held.
    """

    def build(self) -> None:
        if self.codebook_size != 2**self.code_dim:
            raise UserError(f"lfq and bsq have a bit a channel: codebook_size {self.codebook_size} is no power of two")

    @property
    @abstractmethod
    def scale(self) -> float:
        """a: codes are +-a in each channel."""

    @abstractmethod
    def mean_entropy(self, bits: Tensor) -> Tensor:
        """() entropy, in nats, of the mean assignment over rows (N, D) of bits' probabilities and over all ranks."""

    def forward(self, z: Tensor, entropy: bool = False) -> Quantized:
        """Quantize (b, D, h, w) features; `entropy` also computes the entropy loss."""
        with torch.autocast(z.device.type, enabled=False):
            features = self.normalize(z)
            positive = features > 0
            codes = (positive << self._places(z)).sum(1)
            embeddings = (2 * positive.to(features.dtype) - 1) * self.scale
            loss = self._entropy_loss(as_rows(features)) if entropy else features.new_zeros(())
            return Quantized(codes, features, embeddings, loss, self.gradient)

    def embed(self, codes: Tensor) -> Tensor:
        return (2 * (codes[:, None] >> self._places(codes) & 1) - 1) * self.scale

    def near(self, codes: Tensor, neighbours: int) -> Tensor:
        """One of the D codes that differ in one bit, the nearest ones, whatever `neighbours`."""
        return codes ^ (1 << torch.randint_like(codes, self.code_dim))

    def _entropy_loss(self, rows: Tensor) -> Tensor:
        """Mean entropy of the assignments minus the entropy of their mean."""
        logits = rows * (4 * self.scale / self.entropy_temperature)
        return bit_entropies(logits).sum(1).mean() - self.mean_entropy(logits.sigmoid())

    def _places(self, like: Tensor) -> Tensor:
        """(D, 1, 1) place of each channel's bit."""
        return torch.arange(self.code_dim - 1, -1, -1, device=like.device)[:, None, None]


class LookupFreeQuantizer(BinaryQuantizer):
    """`lfq`: codes in {-1, 1}^D (Yu et al. 2023, Eq. 4); the entropy of the mean (Eq. 5) is that over all 2^D codes.

    The mean probability of 2^D codes is one product of (A, N) and (N, B) matrices, A and B the numbers of codes of half
    of the bits each: N x (A + B) numbers and the 2^D of the mean, never N x 2^D.
    """

    scale: float = 1.0  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def mean_entropy(self, bits: Tensor) -> Tensor:
        half = self.code_dim // 2
        mean = joint(bits[:, :half]).T @ joint(bits[:, half:]) / len(bits)
        return torch.special.entr(over_ranks(mean).clamp(min=torch.finfo(mean.dtype).tiny)).sum()


class SphericalQuantizer(BinaryQuantizer):
    """`bsq`: codes in {-1, 1}^D / sqrt(D) for features on the unit sphere (Zhao et al. 2024, section 3).

    The entropy of the mean is the sum of the bits' (their Eq. 13): they are taken as independent, an upper bound.
    """

    unit_length: ClassVar[bool] = True

    @property
    def scale(self) -> float:
        return self.code_dim**-0.5

    def mean_entropy(self, bits: Tensor) -> Tensor:
        mean = over_ranks(bits.mean(0))
        return torch.special.entr(torch.stack([mean, 1 - mean]).clamp(min=torch.finfo(mean.dtype).tiny)).sum()


def bit_entropies(logits: Tensor) -> Tensor:
    """Entropy in nats of bits that are 1 with the probability sigmoid(logit), of any shape."""
    return F.softplus(logits) - logits * logits.sigmoid()


def joint(bits: Tensor) -> Tensor:
    """(N, 2^m) probabilities of all codes of m independent bits (N, m), the first the highest; m = 0: ones."""
    codes = bits.new_ones(len(bits), 1)
    for bit in bits.unbind(1):
        codes = (codes[:, :, None] * torch.stack([1 - bit, bit], 1)[:, None]).flatten(1)
    return codes


def over_ranks(mean: Tensor) -> Tensor:
    """The mean over all ranks; the gradient is this rank's share, which the ranks' gradients are averaged with."""
    return mean + (all_reduce_mean(mean.detach()) - mean.detach())
