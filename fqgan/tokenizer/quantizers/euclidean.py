"""Vector quantization without l2 normalisation: VQGAN's and RQ-VAE's, and SimVQ's with a table behind a linear map."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fqgan.tokenizer.quantizers.base import full_precision
from fqgan.tokenizer.quantizers.vector import CodebookQuantizer, NearestQuantizer


class EuclideanQuantizer(CodebookQuantizer):
    """`vq-euclidean`: the nearest code by Euclidean distance (van den Oord et al. 2017, Eq. 1, 3; Esser et al. 2021).

    Codes start uniform in [-1/K, 1/K], as VQGAN's do: all of them near 0, so that few are used at first. A k-means
    start (`quantizer.kmeans_iterations`) and restarts help.
    """

    residual: ClassVar[bool] = True

    def build(self) -> None:
        self.codebook = nn.Parameter((2 * torch.rand(self.codebook_size, self.code_dim) - 1) / self.codebook_size)

    def table(self) -> Tensor:
        return full_precision(self.codebook)


class SimQuantizer(NearestQuantizer):
    """`simvq`: the codes are C W, a fixed random table C behind one learned linear map W (Zhu et al. 2024, section 4).

    One gradient step on W moves all codes, used or not, so that none is left behind. Distances are Euclidean.
    """

    residual: ClassVar[bool] = True

    def build(self) -> None:
        self.codebook: Tensor
        self.register_buffer("codebook", torch.randn(self.codebook_size, self.code_dim) * self.code_dim**-0.5)
        self.map = nn.Linear(self.code_dim, self.code_dim, bias=False)

    def table(self) -> Tensor:
        return full_precision(self.codebook) @ full_precision(self.map.weight).T
