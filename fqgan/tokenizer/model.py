"""FactorizedTokenizer: encoder -> k factors -> their vectors combined -> decoder (Eq. 3-6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from fqgan.base.inputs import Numbers, as_codes, as_factors, as_images
from fqgan.config import FactorConfig, TokenizerConfig, teacher_dim
from fqgan.models.pretrained import Pretrained
from fqgan.tokenizer.backbone import Decoder, Encoder
from fqgan.tokenizer.branch import Adapter, Branch, FeaturePredictionHead, SpatialHead
from fqgan.tokenizer.compositions import Composition, make_composition
from fqgan.tokenizer.protocol import check_sides
from fqgan.tokenizer.quantizers import make_quantizer
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer

Change = Callable[[list[Tensor], list[Quantized], list[Quantizer]], list[Tensor]]
"""What training changes of the k vectors (b, d, h, w) before they are decoded (`fqgan.tokenizer.perturb`)."""


@dataclass
class TokenizerOutput:
    """A training forward pass."""

    reconstruction: Tensor
    """(b, 3, H, W), not clipped."""
    quantized: list[Quantized]
    """One a factor."""
    predictions: list[Tensor | None]
    """Predicted teacher features (b, teacher_dim), None for factors without a teacher."""
    maps: list[Tensor | None]
    """Predicted maps (b, spatial_teacher_dim, h, w), None for factors without a spatial teacher."""


class FactorizedTokenizer(Pretrained):
    """Images (b, 3, H, W) in [-1, 1] <-> codes (b, k, H/f, W/f) int64, for any number of factors k >= 1.

    k = 1 without an adapter is VQGAN. H and W may be any multiples of the downsampling factor f, b may be 0.

    Images may be tensors or arrays on any device, of any floating-point type or, in 0..255, uint8; codes of any type of
    whole numbers. Results are on the model's device. `UserError` for all else: other shapes or types, pixels that are
    not finite or far outside of [-1, 1], codes that the codebooks don't have.

    Args:
        config: the architecture; `UserError` if it cannot be built.
        entropy_temperature: tau of the entropy loss.
        gradient: how the gradient passes the quantizers, `straight-through` or `rotation`.
    """

    kind = "tokenizer"

    def __init__(self, config: TokenizerConfig, entropy_temperature: float = 0.01, gradient: str = "straight-through"):
        super().__init__(config)
        config.check()
        attention = config.attention_at if config.attention else "nowhere"
        multipliers, stem = config.channel_multipliers, config.stem
        self.encoder = Encoder(config.channels, multipliers, config.res_blocks, attention, stem, config.dropout)
        self.composition = make_composition(config)
        self.branches = nn.ModuleList(
            _branch(config, i, self.composition, entropy_temperature, gradient) for i in range(len(config.factors))
        )
        dims = [factor.code_dim for factor in config.factors]
        self.post_quant = nn.Conv2d(self.composition.channels(dims), config.z_channels, 1)
        channels, blocks = config.decoder_shape
        self.decoder = Decoder(channels, multipliers, blocks, attention, stem, config.z_channels, config.dropout)

    @property
    def num_factors(self) -> int:
        """k."""
        return len(self.branches)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each factor."""
        return tuple(quantizer.codebook_size for quantizer in self.quantizers)

    @property
    def separate(self) -> tuple[str, ...]:
        """Names of the factors, where there are several that `decode` can keep alone."""
        return tuple(factor.name for factor in self.config.factors) if self.num_factors > 1 else ()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.post_quant.weight.device

    @torch.no_grad()
    def code_vectors(self) -> list[Tensor]:
        """(K, D) float32 vectors of each factor's codes, those that the decoder gets."""
        return [quantizer.vectors(self.device).float() for quantizer in self.quantizers]

    @property
    def quantizers(self) -> list[Quantizer]:
        """One a factor; the same one k times where the factors share their codebook."""
        return [branch.quantizer or self.branches[0].quantizer for branch in self.branches]  # pyright: ignore

    def forward(self, images: Numbers, entropy: bool = False, change: Change | None = None) -> TokenizerOutput:
        """Training pass: everything that the losses need. The pixels' values are not looked at, which would make a GPU
        wait.

        Args:
            entropy: compute the quantizers' entropy losses.
            change: gives the vectors to decode in place of those that the composition passes on.
        """
        quantized = self._quantize(self._images(images, values=False), entropy)
        pairs = list(zip(self.branches, quantized, strict=True))
        predictions = [branch.head and branch.head(q.vectors) for branch, q in pairs]  # pyright: ignore
        maps = [branch.spatial and branch.spatial(q.vectors) for branch, q in pairs]  # pyright: ignore
        vectors = self.composition.passed(quantized)
        if change is not None:
            vectors = change(vectors, quantized, self.quantizers)
        return TokenizerOutput(self._decode(vectors), quantized, predictions, maps)

    def set_precision(self, precision: str) -> Self:
        """How `encode`, `decode` and `features` compute: `float32`, or `bf16` with quantizers in float32.

        `bf16` runs the networks under autocast in channels_last: about half the time on a CPU with AVX-512 bf16 or on
        a GPU; a small share of the codes changes. Inputs, results and weights stay float32, and training's forward
        pass as it was. `UserError` for another precision.
        """
        super().set_precision(precision)
        layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
        return self.to(memory_format=layout)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def encode(self, images: Numbers, *, values: bool = True) -> Tensor:
        """Codes (b, k, H/f, W/f) int64 of images (b, 3, H, W) in [-1, 1], or uint8 in 0..255.

        Args:
            values: look at the pixels, for which a GPU must wait; False: they are known to be right.
        """
        images = self._images(images, values)
        with self._autocast(images.device):
            return torch.stack([q.codes for q in self._quantize(images)], 1)

    def decode(
        self, codes: Numbers, keep: int | str | Iterable[int | str] | None = None, *, values: bool = True
    ) -> Tensor:
        """Images (b, 3, H, W), not clipped, of codes (b, k, h, w).

        Args:
            keep: factors to use, by number or name, one or several; the embeddings of the others are set to zero
                (Fig. 3). None: all.
            values: as in `encode`.
        """
        kept = None if keep is None else as_factors(keep, [factor.name for factor in self.config.factors])
        vectors = self.embed(codes, values=values)
        if kept is not None:
            vectors = [v if i in kept else torch.zeros_like(v) for i, v in enumerate(vectors)]
        with self._autocast(vectors[0].device):
            images = self._decode(vectors)
        return images.float() if self.precision == "bf16" else images

    def features(self, images: Numbers) -> list[Tensor]:
        """k tensors (b, d, h, w): the features before quantization, l2-normalised for `vq`."""
        return [q.features for q in self.quantize(images)]

    def quantize(self, images: Numbers) -> list[Quantized]:
        """What each factor makes of images (b, 3, H, W): features before quantization, codes and their embeddings."""
        images = self._images(images)
        with self._autocast(images.device):
            return self._quantize(images)

    def embed(self, codes: Numbers, *, values: bool = True) -> list[Tensor]:
        """k tensors (b, d, h, w): the codes' embeddings, l2-normalised for `vq`."""
        codes = self.check_codes(codes, values=values)
        return [quantizer.embed(codes[:, i]) for i, quantizer in enumerate(self.quantizers)]

    def check_codes(self, codes: Numbers, *, values: bool = True) -> Tensor:
        """(b, k, h, w) int64 on its device of what a user gave for codes; `UserError` for what it has not."""
        return as_codes(codes, self.codebook_sizes, self.device, values=values)

    def meaning(self) -> str:
        """What of the architecture changes the codes without a trace in the weights; empty for the paper's."""
        config, paper = self.config, TokenizerConfig()
        parts = [name for name in ("composition", "shared_codebook") if getattr(config, name) != getattr(paper, name)]
        told = [f"{name} {getattr(config, name)}" for name in parts]
        told += [
            f"{i} {factor.quantizer} {factor.codebook_size} {factor.levels}"
            for i, factor in enumerate(config.factors)
            if factor.quantizer != FactorConfig.quantizer
        ]
        return "\n".join(told)

    def check_size(self, height: int, width: int) -> None:
        """`UserError` unless both are positive multiples of the downsampling factor."""
        check_sides(height, width, self.config.downsampling)

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _images(self, images: Numbers, values: bool = True) -> Tensor:
        weight = self.post_quant.weight
        images = as_images(images, weight.device, weight.dtype, values=values)
        self.check_size(images.shape[2], images.shape[3])
        return images

    def _quantize(self, images: Tensor, entropy: bool = False) -> list[Quantized]:
        return self.composition.quantize(self.branches, self.quantizers, self.encoder(images), entropy)  # pyright: ignore

    def _decode(self, vectors: list[Tensor]) -> Tensor:
        return self.decoder(self.post_quant(self.composition.combine(vectors).to(self.post_quant.weight.dtype)))


def _branch(
    config: TokenizerConfig, i: int, composition: Composition, entropy_temperature: float, gradient: str
) -> Branch:
    factor = config.factors[i]
    width = config.channels * config.channel_multipliers[-1]
    channels = factor.code_dim
    if composition.shared:
        channels = 0 if i else composition.channels([factor.code_dim for factor in config.factors])
    adapter = None
    if factor.adapter_depth and channels:
        adapter = Adapter(width, config.grid, factor.adapter_depth, width // config.adapter_head_dim)
    head = None
    if factor.teacher:
        head = FeaturePredictionHead(
            factor.code_dim,
            teacher_dim(factor),
            config.feature_head_width,
            config.grid,
            config.feature_head_depth,
            config.feature_head_heads,
        )
    spatial = None
    if factor.spatial_teacher:
        spatial = SpatialHead(factor.code_dim, teacher_dim(factor, "spatial_teacher"), config.feature_head_width)
    quantizer = None if i and config.shared_codebook else make_quantizer(factor, entropy_temperature, gradient)
    return Branch(adapter, width, config.z_channels, channels, quantizer, head, spatial)
