"""The entropy loss of soft assignments to K codes, without a matrix of all N x K probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fqgan.engine.distributed import all_reduce_mean
from fqgan.tokenizer.quantizers.nearest import chunks, largest_entries, similarities

_EPS = 1e-5  # inside the logarithm of the mean code probability, as in the released models
_LN2 = math.log(2)


def soft_assignment(
    rows: Tensor, table: Tensor, temperature: float, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes (N,) int64 and the entropy loss () of soft assignments softmax(s) of rows (N, D) to a table (K, D).

    s = 2 (z.e + offset) / temperature: with the offset -|e|^2 / 2, and without one for unit vectors, softmax(-d /
    temperature) with d the squared distance, as what d has beside it is the same for all codes of a row.
    """
    return _SoftAssignment.apply(rows, table, offset, temperature)  # pyright: ignore[reportReturnType]


class _SoftAssignment(torch.autograd.Function):
    """Codes and entropy loss in one pass over chunks of rows; the backward pass recomputes the chunks.

    With p = softmax(s), over N rows and the mean probability pbar of all ranks:

        L = mean_n H(p_n) + sum_k pbar_k log(pbar_k + eps)
        dL/ds_nk = p_nk / N * [a_nk - sum_j p_nj a_nj]
        a_nk = g_k - log p_nk,  g = log(pbar + eps) + pbar / (pbar + eps)

    pbar enters the gradient only through g: averaging over ranks needs no second communication.

    Scores are held to base 2 (on a CPU exp falls to a slow path for the many results below the normal range, exp2 does
    not), and the table as columns (D, K), which makes the thin products of a CPU up to eleven times as fast.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, table: Tensor, offset: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        n, scale = len(rows), 2 / temperature
        scaled, columns = rows * (scale / _LN2), table.T.contiguous()
        offset = None if offset is None else offset * (scale / _LN2)
        codes = torch.empty(n, dtype=torch.int64, device=rows.device)
        entropies, log_sums, mean = rows.new_empty(n), rows.new_empty(n), rows.new_zeros(len(table))
        for chunk in chunks(rows, len(table)):
            scores = similarities(scaled[chunk], columns, offset)
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
        ctx.scale, ctx.offset = scale, offset
        ctx.mark_non_differentiable(codes)
        return codes, entropies.mean() + torch.dot(mean, (mean + _EPS).log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        scaled, columns, mean, log_sums, entropies = ctx.saved_tensors
        g = (mean + _EPS).log() + mean / (mean + _EPS)
        grad_rows = torch.empty_like(scaled)
        grad_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        grad_offset = torch.zeros_like(mean) if ctx.needs_input_grad[2] else None
        for chunk in chunks(scaled, columns.shape[1]):
            log_p = similarities(scaled[chunk], columns, ctx.offset).sub_(log_sums[chunk, None])  # to base 2
            p = log_p.exp2()
            centre = p @ g + entropies[chunk]  # sum_j p_nj a_nj
            a = torch.sub(g, log_p, alpha=_LN2, out=log_p)
            grad_scores = p.mul_(a.sub_(centre[:, None]))
            torch.mm(grad_scores, columns.T, out=grad_rows[chunk])
            if grad_columns is not None:
                grad_columns.addmm_(scaled[chunk].T, grad_scores)
            if grad_offset is not None:
                grad_offset += grad_scores.sum(0)
        weight = grads[1] / len(scaled)
        if grad_columns is not None:
            grad_columns = grad_columns.mul_(weight * _LN2).T
        if grad_offset is not None:
            grad_offset *= weight * ctx.scale
        return grad_rows.mul_(weight * ctx.scale), grad_columns, grad_offset, None
