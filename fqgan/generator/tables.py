"""Tables with a row for each code: free rows, or rows that codes of near vectors share in part."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_STD = 0.02


class SharedRows(nn.Module):
    """(K, d) rows, one a code: a free one each, plus a linear map of the tokenizer's vector of the code.

    What is learned of one code then holds for near codes, too. RQ-Transformer (Lee et al. 2022) takes the vectors as
    inputs; here both inputs and outputs have them, beside the free rows. A tokenizer's few dimensions make that cheap.
    """

    vectors: Tensor
    """(K, D), standardised: mean 0 and variance 1 in each dimension."""

    def __init__(self, size: int, dim: int, width: int, std: float):
        super().__init__()
        self.std = std
        self.own = nn.Parameter(torch.empty(size, width))
        self.shared = nn.Parameter(torch.empty(dim, width))
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.reset()

    def reset(self) -> None:
        """Start from normal rows, of which those of near codes are alike; all 0 with a deviation of 0."""
        nn.init.normal_(self.own, std=self.std)
        nn.init.normal_(self.shared, std=self.std)

    @property
    def weight(self) -> Tensor:
        """(K, d), in the parameters' precision whatever the autocast."""
        with torch.autocast(self.own.device.type, enabled=False):
            return torch.addmm(self.own, self.vectors.to(self.own.dtype), self.shared)

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        """All of them: rows of a table are no map between hidden features."""
        return self.parameters()


class SharedEmbedding(SharedRows):
    """Codes (...) int64 -> their rows (..., d)."""

    def forward(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.weight)


class SharedOutput(SharedRows):
    """(..., d) -> logits of all codes (..., K)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


def make_embedding(size: int, dim: int, width: int) -> nn.Module:
    """The table of a factor's inputs; with `dim` > 0 codes share rows through vectors of that dimension."""
    return SharedEmbedding(size, dim, width, INITIAL_STD) if dim else nn.Embedding(size, width)


def make_output(size: int, dim: int, width: int) -> nn.Module:
    """The layer of a factor's logits, as `make_embedding`. `FAR` sets it to 0."""
    return SharedOutput(size, dim, width, 0.0) if dim else nn.Linear(width, size, bias=False)


def standardised(vectors: Tensor) -> Tensor:
    """(K, D) vectors with mean 0 and variance 1 in each dimension; a dimension in which all are equal is 0."""
    centred = vectors.double() - vectors.double().mean(0)
    return (centred / centred.square().mean(0).sqrt().clamp(min=1e-12)).float()
