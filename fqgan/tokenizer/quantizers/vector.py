"""Vector quantization: the nearest of K vectors of a table; `vq` on the unit sphere (Eq. 1, 5)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fqgan.config import QuantizerConfig
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer, as_rows, full_precision
from fqgan.tokenizer.quantizers.keeper import CodebookKeeper
from fqgan.tokenizer.quantizers.nearest import nearest_codes
from fqgan.tokenizer.quantizers.soft import soft_assignment


class NearestQuantizer(Quantizer):
    """The nearest of the K rows of a table; a subclass says which table.

    `entropy_temperature` is tau of the soft assignment softmax(-d / tau) with d the squared distance.
    """

    @abstractmethod
    def table(self) -> Tensor:
        """(K, D) vectors of the codes, at least float32."""

    def forward(self, z: Tensor, entropy: bool = False) -> Quantized:
        """Quantize (b, D, h, w) features; `entropy` also computes the entropy loss.

        Runs in float32 whatever the autocast: in bf16 most codes tie and the codebook collapses.
        """
        with torch.autocast(z.device.type, enabled=False):
            features, table = self.normalize(z), self.table()
            b, _, h, w = features.shape
            rows, offset = as_rows(features), self.offset(table)
            if entropy:
                codes, entropy_loss = soft_assignment(rows, table, self.entropy_temperature, offset)
            else:
                codes, entropy_loss = nearest_codes(rows, table, offset), rows.new_zeros(())
            codes = codes.view(b, h, w)
            embeddings = F.embedding(codes, table).permute(0, 3, 1, 2)
            return Quantized(codes, features, embeddings, entropy_loss, self.gradient)

    def offset(self, table: Tensor) -> Tensor | None:
        """(K,) what is added to the products of features and codes: -|e|^2 / 2 makes the largest sum the smallest
        distance. None: nothing, as all rows are of one length."""
        return None if self.unit_length else -table.square().sum(1) / 2

    def embed(self, codes: Tensor) -> Tensor:
        """(b, D, h, w) vectors of (b, h, w) codes."""
        return F.embedding(codes, self.table()).permute(0, 3, 1, 2)


class CodebookQuantizer(NearestQuantizer):
    """The table is a parameter, which gradient descent or a keeper moves."""

    codebook: nn.Parameter
    """(K, D), as it is stored."""

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
            unit_length=self.unit_length,
        )


class VectorQuantizer(CodebookQuantizer):
    """`vq`: the nearest code on the unit sphere (Eq. 1), one codebook (Eq. 5 has k of these)."""

    unit_length: ClassVar[bool] = True

    def build(self) -> None:
        self.codebook = nn.Parameter(F.normalize(torch.randn(self.codebook_size, self.code_dim), dim=1))

    def table(self) -> Tensor:
        """(K, D) rows of unit length, at least float32."""
        return F.normalize(full_precision(self.codebook), dim=1)
