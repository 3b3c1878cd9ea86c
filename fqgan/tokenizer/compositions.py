"""How the factors share a position's features, by the names that `TokenizerConfig.composition` knows them by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import TokenizerConfig
from fqgan.tokenizer.branch import Branch
from fqgan.tokenizer.quantizers import names_where, quantizer_class
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer


class Composition:
    """`factorized`: each factor projects the base features by a branch of its own; vectors side by side (Eq. 4-6)."""

    shared: ClassVar[bool] = False
    """Whether the first branch's adapter and projection serve all factors."""
    in_turn: ClassVar[bool] = False
    """Whether what a factor reads depends on the codes of the ones before it."""

    @staticmethod
    def channels(dims: Sequence[int]) -> int:
        """Channels of the combined vectors of factors of these dimensions."""
        return sum(dims)

    def quantize(
        self, branches: Sequence[Branch], quantizers: Sequence[Quantizer], base: Tensor, entropy: bool
    ) -> list[Quantized]:
        """What each factor makes of base features (b, width, h, w)."""
        pairs = zip(branches, quantizers, strict=True)
        return [quantizer(branch.project(base), entropy) for branch, quantizer in pairs]

    def passed(self, quantized: Sequence[Quantized]) -> list[Tensor]:
        """The vectors with the gradients that the decoder gives back."""
        return [q.vectors for q in quantized]

    def combine(self, vectors: Sequence[Tensor]) -> Tensor:
        """k tensors (b, d, h, w) -> the decoder's input (b, `channels`, h, w)."""
        return torch.cat(list(vectors), 1)


class Product(Composition):
    """`product`: one projection, whose channels the factors split (product quantization, Jegou et al. 2011)."""

    shared = True

    def quantize(
        self, branches: Sequence[Branch], quantizers: Sequence[Quantizer], base: Tensor, entropy: bool
    ) -> list[Quantized]:
        parts = branches[0].project(base).split([quantizer.code_dim for quantizer in quantizers], 1)
        return [quantizer(part, entropy) for quantizer, part in zip(quantizers, parts, strict=True)]


class Residual(Composition):
    """`residual`: each factor quantizes what the ones before it left, and the vectors are summed (RQ-VAE, Lee et al.
    2022, Eq. 3 and 4). The decoder's gradient reaches the features once, and each factor's commitment term is that of
    the partial sum up to it (their Eq. 9)."""

    shared = True
    in_turn = True

    @staticmethod
    def channels(dims: Sequence[int]) -> int:
        return dims[0]

    def quantize(
        self, branches: Sequence[Branch], quantizers: Sequence[Quantizer], base: Tensor, entropy: bool
    ) -> list[Quantized]:
        rest = branches[0].project(base)
        quantized = []
        for quantizer in quantizers:
            quantized.append(quantizer(rest, entropy))
            rest = rest - quantized[-1].embeddings.detach()
        return quantized

    def passed(self, quantized: Sequence[Quantized]) -> list[Tensor]:
        first, *others = quantized
        return [first.vectors, *(q.embeddings.detach() for q in others)]

    def combine(self, vectors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(vectors)).sum(0)


COMPOSITIONS: dict[str, type[Composition]] = {"factorized": Composition, "product": Product, "residual": Residual}


def make_composition(config: TokenizerConfig) -> Composition:
    """The composition of a tokenizer; `UserError` where a factor's quantizer cannot take part."""
    if config.composition == "residual":
        for factor in config.factors:
            if not quantizer_class(factor).residual:
                raise UserError(
                    f"model.composition residual needs quantizers that leave a rest to quantize again "
                    f"({names_where('residual')}), and factor {factor.name} has {factor.quantizer}"
                )
    return COMPOSITIONS[config.composition]()
