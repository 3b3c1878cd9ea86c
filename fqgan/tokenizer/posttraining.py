"""Training the decoder alone (`train.only` decoder), on an image's own codes or on those that a generator has drawn.

The second is the post-training of "Image Tokenizer Needs Post-Training" (Qiu et al. 2025): a decoder has seen the
encoder's codes alone, and a generator draws others. A share of each image's codes stays, the generator draws the rest
given these and its own, and the decoder learns to give the image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.base.schema import changes
from fqgan.config import DataConfig, LossConfig, TokenizerConfig
from fqgan.data.sources import ImageSource
from fqgan.data.tokens import TokenStore
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer

_OF_CODES = ("commitment", "entropy", "disentangle", "independence", "representation", "spatial")


def hold(model: FactorizedTokenizer) -> None:
    """Let nothing learn or change but the decoder and the projection before it."""
    held: list[nn.Module] = [model.encoder, model.branches]
    for part in held:
        part.requires_grad_(False).eval()


def without_codes(loss: LossConfig) -> LossConfig:
    """The weights without the terms that teach codes, features or codebooks."""
    return replace(loss, **{f"{term}_weight": 0.0 for term in _OF_CODES})


class StoredCodes:
    """Codes of a store, by the place of their picture in the data set.

    Args:
        path: a token store of the data set's centre crops.
        model: the tokenizer; `codes_of` is its codes' fingerprint.
        data: fingerprint of the data set.
        options: how the data set is read.

    Raises:
        UserError: no store, and one of other codes, images, sizes or crops.
    """

    def __init__(self, path: str, model: TokenizerConfig, data: dict[str, Any], options: DataConfig):
        self.store = TokenStore.open(path)
        manifest = self.store.manifest
        own = manifest.options
        wrong = {
            "made by another tokenizer than --init": own.tokenizer != model.codes_of,
            f"of other images than --data.source ({changes(manifest.data, data)})": manifest.data != data,
            f"of {own.image_size} pixels, not {model.image_size}": own.image_size != model.image_size,
            "not of centre crops at their own size": own.crops != "center" or own.crop_range != 1,
            "of pictures read in another way": (own.small, own.range) != (options.small, " ".join(options.range)),
        }
        if why := next((why for why, holds in wrong.items() if holds), ""):
            raise UserError(f"latent.codes {path} is a token store {why}")
        stop = manifest.shards[-1].stop
        kept = np.setdiff1d(np.arange(stop), [each.index for each in manifest.unreadable])
        self._rows = np.full(stop, -1)
        self._rows[kept] = np.arange(len(kept))

    def of(self, indices: Tensor) -> Tensor:
        """(b, k, h, w) int64 on the CPU of pictures (b,)."""
        rows = self._rows[indices.cpu().numpy()]
        if (rows < 0).any():
            raise UserError(f"{self.store.name} has no codes of a picture that could not be read then: make it anew")
        return self.store.take(rows, np.zeros_like(rows))[0]


class Decoded:
    """What is decoded in place of the images' own codes, in the form of `fqgan.tokenizer.model.Change`.

    Args:
        codes: (b, k, h, w).
    """

    def __init__(self, codes: Tensor):
        self.codes = codes

    def __call__(
        self, vectors: list[Tensor], quantized: Sequence[Quantized], quantizers: Sequence[Quantizer]
    ) -> list[Tensor]:
        """k tensors (b, d, h, w)."""
        return [quantizer.embed(self.codes[:, i]) for i, quantizer in enumerate(quantizers)]

    def share(self, quantized: Sequence[Quantized]) -> Tensor:
        """Share of the codes that are not the images' own."""
        return (self.codes != torch.stack([each.codes for each in quantized], 1)).float().mean()


def numbered(source: ImageSource) -> ImageSource:
    """The same pictures, each with its place as its label."""
    source = copy.copy(source)
    source.labels = np.arange(len(source))
    return source
