"""Vector quantization (Eq. 1, 5) with a lookup and an entropy loss that never hold an N x K matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fqgan.engine.distributed import all_reduce_mean

_EPS = 1e-5  # inside the logarithm of the mean code probability, as in the released models
_LN2 = math.log(2)
_BLOCK = 32


@dataclass
class Quantized:
    """What a quantizer makes of features. Vectors are (b, d, h, w), of unit length over d."""

    codes: Tensor
    """(b, h, w) int64 in [0, K)."""
    features: Tensor
    """The l2-normalised input."""
    embeddings: Tensor
    """The chosen codebook rows, with gradient to the codebook."""
    entropy_loss: Tensor
    """Mean entropy of the soft assignments minus the entropy of their mean; 0 unless asked for."""
    gradient: str = "straight-through"
    """How the gradient of `vectors` reaches the features: `straight-through` or `rotation`."""

    def detached(self) -> Quantized:
        """The same without gradients, and without what they would keep in memory."""
        tensors = {name: getattr(self, name).detach() for name in ("features", "embeddings", "entropy_loss")}
        return replace(self, **tensors)

    @property
    def carried(self) -> Tensor:
        """What the gradient of `vectors` flows through: the features, or the features rotated onto their codes."""
        return self.features if self.gradient == "straight-through" else rotate(self.features, self.embeddings)

    @property
    def vectors(self) -> Tensor:
        """The embeddings, with gradient to the features."""
        carried = self.carried
        return carried + (self.embeddings - carried).detach()

    @property
    def codebook_loss(self) -> Tensor:
        """Pulls the chosen codes to the features, mean over elements."""
        return F.mse_loss(self.embeddings, self.features.detach())

    @property
    def commitment_loss(self) -> Tensor:
        """Pulls the features to their codes, mean over elements."""
        return F.mse_loss(self.features, self.embeddings.detach())


class VectorQuantizer(nn.Module):
    """Nearest code on the unit sphere (Eq. 1), one codebook (Eq. 5 has k of these).

    Args:
        codebook_size: K.
        code_dim: D.
        entropy_temperature: tau of the soft assignment softmax(-d / tau).
        gradient: `straight-through`, or `rotation` for the rotation trick (`rotate`).
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        entropy_temperature: float = 0.01,
        gradient: str = "straight-through",
    ):
        super().__init__()
        self.entropy_temperature, self.gradient = entropy_temperature, gradient
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, code_dim), dim=1))

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.codebook.shape[0]

    def normalized_codebook(self) -> Tensor:
        """(K, D) rows of unit length, at least float32."""
        return F.normalize(_full_precision(self.codebook), dim=1)

    def normalize(self, z: Tensor) -> Tensor:
        """(b, d, h, w) features of unit length over d, at least float32."""
        return F.normalize(_full_precision(z), dim=1)

    def forward(self, z: Tensor, entropy: bool = False) -> Quantized:
        """Quantize (b, d, h, w) features; `entropy` also computes the entropy loss.

        Runs in float32 whatever the autocast: in bf16 most codes tie and the codebook collapses.
        """
        with torch.autocast(z.device.type, enabled=False):
            features, codebook = self.normalize(z), self.normalized_codebook()
            b, _, h, w = features.shape
            rows = as_rows(features)
            if entropy:
                codes, entropy_loss = _SoftAssignment.apply(rows, codebook, self.entropy_temperature)  # pyright: ignore
            else:
                codes, entropy_loss = nearest_codes(rows, codebook), rows.new_zeros(())
            codes = codes.view(b, h, w)
            embeddings = F.embedding(codes, codebook).permute(0, 3, 1, 2)
            return Quantized(codes, features, embeddings, entropy_loss, self.gradient)

    def encode(self, z: Tensor) -> Tensor:
        """Codes (b, h, w) of (b, d, h, w) features."""
        return self(z).codes

    def embed(self, codes: Tensor) -> Tensor:
        """(b, d, h, w) unit vectors of (b, h, w) codes."""
        return F.embedding(codes, self.normalized_codebook()).permute(0, 3, 1, 2)


def as_rows(x: Tensor) -> Tensor:
    """(b, d, h, w) -> (b * h * w, d)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def rotate(features: Tensor, embeddings: Tensor) -> Tensor:
    """The rotation trick (Fifty et al. 2024, section 4.2): R x, where the constant R rotates features onto embeddings.

    Both (b, d, h, w), of unit length over d. The value is `embeddings` up to rounding, the gradient to `features` is
    R^T g. With features f, codes q and r = (f + q) / |f + q|, R = I - 2 r r^T + 2 q f^T is two reflections, of which
    only products with vectors are needed. Where q = -f no rotation is singled out: R = I - 2 f f^T there.
    """
    f, q = features.detach(), embeddings.detach()
    r = F.normalize(f + q, dim=1)
    return features - 2 * r * (r * features).sum(1, keepdim=True) + 2 * q * (f * features).sum(1, keepdim=True)


@torch.no_grad()
def nearest_codes(rows: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of `codebook` (K, D) for each of `rows` (N, D), both of unit length; (N,) int64.

    On the unit sphere the smallest distance is the largest dot product.
    """
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    columns = codebook.T.contiguous()
    for chunk in _chunks(len(rows), len(codebook), rows.device):
        codes[chunk] = _largest(rows[chunk] @ columns)[1]
    return codes


class _SoftAssignment(torch.autograd.Function):
    """Codes and entropy loss in one pass over chunks of rows; the backward pass recomputes the chunks.

    With s = -d / tau and p = softmax(s), over N rows and the mean probability pbar of all ranks:

        L = mean_n H(p_n) + sum_k pbar_k log(pbar_k + eps)
        dL/ds_nk = p_nk / N * [a_nk - sum_j p_nj a_nj]
        a_nk = g_k - log p_nk,  g = log(pbar + eps) + pbar / (pbar + eps)

    The terms of d that are constant for unit vectors cancel in p and in the gradients after normalisation, so
    s = 2 z.e / tau. pbar enters the gradient only through g: averaging over ranks needs no second communication.

    Scores are held to base 2 (on a CPU exp falls to a slow path for the many results below the normal range, exp2 does
    not), and the codebook as columns (D, K), which makes the thin products of a CPU up to eleven times as fast.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        n, scale = len(rows), 2 / temperature
        scaled, columns = rows * (scale / _LN2), codebook.T.contiguous()
        codes = torch.empty(n, dtype=torch.int64, device=rows.device)
        entropies, log_sums, mean = rows.new_empty(n), rows.new_empty(n), rows.new_zeros(len(codebook))
        for chunk in _chunks(n, len(codebook), rows.device):
            scores = scaled[chunk] @ columns
            largest, codes[chunk] = _largest(scores)
            exponents = scores.sub_(largest[:, None])
            powers = exponents.exp2()
            sums = powers.sum(1)
            mean += sums.reciprocal() @ powers
            log_sums[chunk] = largest + sums.log2()
            entropies[chunk] = sums.log2() - torch.linalg.vecdot(powers, exponents) / sums
        mean = all_reduce_mean(mean.div_(n))
        entropies *= _LN2
        ctx.save_for_backward(scaled, columns, mean, log_sums, entropies)
        ctx.scale = scale
        ctx.mark_non_differentiable(codes)
        return codes, entropies.mean() + torch.dot(mean, (mean + _EPS).log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        scaled, columns, mean, log_sums, entropies = ctx.saved_tensors
        g = (mean + _EPS).log() + mean / (mean + _EPS)
        grad_rows = torch.empty_like(scaled)
        grad_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        for chunk in _chunks(len(scaled), columns.shape[1], scaled.device):
            log_p = (scaled[chunk] @ columns).sub_(log_sums[chunk, None])  # to base 2
            p = log_p.exp2()
            centre = p @ g + entropies[chunk]  # sum_j p_nj a_nj
            a = torch.sub(g, log_p, alpha=_LN2, out=log_p)
            grad_scores = p.mul_(a.sub_(centre[:, None]))
            torch.mm(grad_scores, columns.T, out=grad_rows[chunk])
            if grad_columns is not None:
                grad_columns.addmm_(scaled[chunk].T, grad_scores)
        weight = grads[1] / len(scaled)
        if grad_columns is not None:
            grad_columns = grad_columns.mul_(weight * _LN2).T
        return grad_rows.mul_(weight * ctx.scale), grad_columns, None


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest entry of each row (n, K) and the index of the first such one, both (n,).

    On a CPU in two steps, first among blocks, which takes a fifth of the time of its argmax over whole rows.
    """
    n, columns = scores.shape
    if not scores.is_cpu or columns % _BLOCK:
        largest = scores.max(1)
        return largest.values, largest.indices
    blocks = scores.view(n, -1, _BLOCK)
    largest, block = blocks.amax(2).max(1)
    within = blocks[torch.arange(n), block].argmax(1)
    return largest, block * _BLOCK + within


def _chunks(n: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Row slices whose score matrix stays in a CPU's cache or fills a GPU."""
    elements = 2**19 if device.type == "cpu" else 2**26
    rows = max(1, elements // columns)
    return (slice(start, start + rows) for start in range(0, n, rows))


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
