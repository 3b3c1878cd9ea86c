"""Index back-propagation (IBQ, Shi et al. 2024): the gradient reaches all codes through the one-hot choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fqgan.tokenizer.quantizers.base import Quantized, as_rows
from fqgan.tokenizer.quantizers.euclidean import EuclideanQuantizer
from fqgan.tokenizer.quantizers.nearest import chunks


class IndexQuantizer(EuclideanQuantizer):
    """`ibq`: the code with the largest product z.e (Shi et al. 2024, section 3.2).

    The gradient passes the choice, not the feature: the one-hot index is that of the largest entry in the forward pass
    and softmax(z.e) in the backward pass, so that each step moves all codes and the feature. The codebook's term is the
    paper's double quantization loss. Its entropy loss is that of softmax(z.e / tau).

    Codes start from the normal distribution. With codes near 0, like those of `vq-euclidean`, softmax(z.e) is uniform:
    no gradient tells one code from another, and the double quantization loss draws all of them together.
    """

    residual: ClassVar[bool] = False

    def build(self) -> None:
        self.codebook = nn.Parameter(torch.randn(self.codebook_size, self.code_dim))
        self.entropy_temperature *= 2  # its logits are z.e, not 2 z.e as those of distances

    def offset(self, table: Tensor) -> None:
        return None

    def forward(self, z: Tensor, entropy: bool = False) -> Quantized:
        out = super().forward(z, entropy)
        if not out.embeddings.requires_grad:
            return out
        with torch.autocast(z.device.type, enabled=False):
            rows = _ThroughIndex.apply(as_rows(out.features), self.table(), out.codes.flatten())
        b, _, h, w = z.shape
        return replace(out, through_index=rows.view(b, h, w, -1).permute(0, 3, 1, 2))  # pyright: ignore

    def keeper(self, *arguments: Any, **options: Any) -> Any:
        """None: all codes learn by gradient in each step, so that nothing is left to keep."""
        return None


class _ThroughIndex(torch.autograd.Function):
    """Rows of the table (K, D) by codes (N,), as if they were softmax(rows table^T) table in the backward pass.

    With g the gradient of the result, p = softmax(s) and a_nk = g_n.e_k:

        dL/ds_nk = p_nk (a_nk - sum_j p_nj a_nj)

    which gives the gradients of the rows (N, D) and of the table, to which each chosen code adds its rows' g. Chunks of
    rows are computed again, so that no N x K matrix is held.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(rows, table, codes)
        return table[codes]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, table, codes = ctx.saved_tensors
        (g,) = grads
        columns = table.T.contiguous()
        grad_rows, grad_columns = torch.empty_like(rows), torch.zeros_like(columns)
        for chunk in chunks(rows, len(table)):
            p = (rows[chunk] @ columns).softmax(1)
            a = g[chunk] @ columns
            grad_scores = a.sub_(torch.linalg.vecdot(p, a)[:, None]).mul_(p)
            torch.mm(grad_scores, table, out=grad_rows[chunk])
            grad_columns.addmm_(rows[chunk].T, grad_scores)
        return grad_rows, grad_columns.T.contiguous().index_add_(0, codes, g), None
