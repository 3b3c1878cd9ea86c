"""Vector quantization (Eq. 1, 5) with a lookup and an entropy loss that never hold an N x K matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from fqgan.config import QuantizerConfig
from fqgan.engine.distributed import all_reduce_mean
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer, as_rows, full_precision
from fqgan.tokenizer.quantizers.keeper import CodebookKeeper
from fqgan.tokenizer.quantizers.nearest import chunks, largest_entries, nearest_codes

_EPS = 1e-5  # inside the logarithm of the mean code probability, as in the released models
_LN2 = math.log(2)


class VectorQuantizer(Quantizer):
    """Nearest code on the unit sphere (Eq. 1), one codebook (Eq. 5 has k of these).

    `entropy_temperature` is tau of the soft assignment softmax(-d / tau).
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        entropy_temperature: float = 0.01,
        gradient: str = "straight-through",
    ):
        super().__init__(codebook_size, code_dim, entropy_temperature, gradient)
        self.codebook = nn.Parameter(F.normalize(torch.randn(codebook_size, code_dim), dim=1))

    def normalized_codebook(self) -> Tensor:
        """(K, D) rows of unit length, at least float32."""
        return F.normalize(full_precision(self.codebook), dim=1)

    def normalize(self, z: Tensor) -> Tensor:
        """(b, d, h, w) features of unit length over d."""
        return F.normalize(full_precision(z), dim=1)

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

    def embed(self, codes: Tensor) -> Tensor:
        """(b, d, h, w) unit vectors of (b, h, w) codes."""
        return F.embedding(codes, self.normalized_codebook()).permute(0, 3, 1, 2)

    def keeper(
        self, optimizer: Optimizer, options: QuantizerConfig, seed: tuple[int, int], interleaved: bool
    ) -> CodebookKeeper:
        return CodebookKeeper(
            self.codebook,
            optimizer,
            ema_decay=options.ema_decay,
            restart_after=options.restart_after,
            seed=seed,
            interleaved=interleaved,
        )


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
        for chunk in chunks(rows, len(codebook)):
            scores = scaled[chunk] @ columns
            largest, codes[chunk] = largest_entries(scores)
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
        for chunk in chunks(scaled, columns.shape[1]):
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
