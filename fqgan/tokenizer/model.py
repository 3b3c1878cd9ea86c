"""FactorizedTokenizer: encoder -> k branches -> channel concatenation -> decoder (Eq. 3-6)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from fqgan.config import FactorConfig, TokenizerConfig, teacher_dim
from fqgan.errors import UserError
from fqgan.pretrained import Pretrained
from fqgan.printing import say
from fqgan.tokenizer.backbone import Decoder, Encoder
from fqgan.tokenizer.branch import Adapter, Branch, FeaturePredictionHead
from fqgan.tokenizer.quantize import Quantized, VectorQuantizer


@dataclass
class TokenizerOutput:
    """A training forward pass."""

    reconstruction: Tensor
    """(b, 3, H, W), not clipped."""
    quantized: list[Quantized]
    """One a factor."""
    predictions: list[Tensor | None]
    """Predicted teacher features (b, teacher_dim), None for factors without a teacher."""


class FactorizedTokenizer(Pretrained):
    """Images (b, 3, H, W) in [-1, 1] <-> codes (b, k, H/f, W/f) int64, for any number of factors k >= 1.

    k = 1 without an adapter is VQGAN. H and W may be any multiples of the downsampling factor f.

    Args:
        config: the architecture; `UserError` if it cannot be built.
        entropy_temperature: tau of the entropy loss.
        gradient: how the gradient passes the quantizers, `straight-through` or `rotation`.
    """

    kind = "tokenizer"

    def __init__(self, config: TokenizerConfig, entropy_temperature: float = 0.01, gradient: str = "straight-through"):
        super().__init__(config)
        config.check()
        self.precision = "float32"
        shape = (config.channels, config.channel_multipliers, config.res_blocks, config.attention, config.stem)
        self.encoder = Encoder(*shape, config.dropout)
        self.branches = nn.ModuleList(
            _branch(config, factor, entropy_temperature, gradient) for factor in config.factors
        )
        self.post_quant = nn.Conv2d(sum(factor.code_dim for factor in config.factors), config.z_channels, 1)
        self.decoder = Decoder(*shape, config.z_channels, config.dropout)

    @property
    def num_factors(self) -> int:
        """k."""
        return len(self.branches)

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """One a factor."""
        return [branch.quantizer for branch in self.branches]  # pyright: ignore[reportReturnType]

    def forward(self, images: Tensor, entropy: bool = False) -> TokenizerOutput:
        """Training pass: everything that the losses need. `entropy` asks for the quantizers' entropy losses."""
        base = self._base(images)
        results = [branch(base, entropy) for branch in self.branches]
        quantized = [result[0] for result in results]
        reconstruction = self._decode([q.vectors for q in quantized])
        return TokenizerOutput(reconstruction, quantized, [result[1] for result in results])

    def set_precision(self, precision: str) -> Self:
        """How `encode`, `decode` and `features` compute: `float32`, or `bf16` with quantizers in float32.

        `bf16` runs the networks under autocast in channels_last: about half the time on a CPU with AVX-512 bf16 or on
        a GPU; a small share of the codes changes. Inputs, results and weights stay float32, and training's forward
        pass as it was. `UserError` for another precision.
        """
        if precision not in ("float32", "bf16"):
            raise UserError(f"precision must be float32 or bf16, got {precision!r}")
        self.precision = precision
        layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
        return self.to(memory_format=layout)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes (b, k, H/f, W/f) int64 of images (b, 3, H, W) in [-1, 1]. Wrong shapes raise `UserError`."""
        with self._autocast(images.device):
            base = self._base(images)
            return torch.stack([b.quantizer.encode(b.project(base)) for b in self.branches], 1)  # pyright: ignore

    def decode(self, codes: Tensor, keep: Sequence[int] | None = None) -> Tensor:
        """Images (b, 3, H, W), not clipped, of codes (b, k, h, w).

        Args:
            keep: factors to use; the embeddings of the others are set to zero (Fig. 3). None: all.
        """
        vectors = self.embed(codes)
        if keep is not None:
            unknown = [i for i in keep if not 0 <= i < self.num_factors]
            if unknown:
                raise UserError(
                    f"keep names factor {unknown[0]}, but the tokenizer has factors 0..{self.num_factors - 1}"
                )
            vectors = [v if i in keep else torch.zeros_like(v) for i, v in enumerate(vectors)]
        with self._autocast(codes.device):
            images = self._decode(vectors)
        return images.float() if self.precision == "bf16" else images

    def features(self, images: Tensor) -> list[Tensor]:
        """k tensors (b, d, h, w): the l2-normalised features before quantization."""
        with self._autocast(images.device):
            base = self._base(images)
            return [b.quantizer.normalize(b.project(base)) for b in self.branches]  # pyright: ignore

    def embed(self, codes: Tensor) -> list[Tensor]:
        """k tensors (b, d, h, w): the codes' l2-normalised embeddings. Wrong shapes or codes raise `UserError`."""
        if codes.ndim != 4 or codes.shape[1] != self.num_factors:
            raise UserError(f"codes must be (b, {self.num_factors}, h, w), got {tuple(codes.shape)}")
        for i, quantizer in enumerate(self.quantizers):
            factor = codes[:, i]
            if not codes.is_cuda and factor.numel() and not 0 <= factor.min() <= factor.max() < quantizer.codebook_size:
                raise UserError(f"codes of factor {i} must lie in [0, {quantizer.codebook_size})")
        return [quantizer.embed(codes[:, i]) for i, quantizer in enumerate(self.quantizers)]

    def check_size(self, height: int, width: int) -> None:
        """`UserError` unless both are positive multiples of the downsampling factor."""
        f = self.config.downsampling
        if height % f or width % f or min(height, width) < f:
            raise UserError(f"image size {width}x{height} is no multiple of the tokenizer's downsampling factor {f}")

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _base(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images must be (b, 3, H, W), got {tuple(images.shape)}")
        self.check_size(images.shape[2], images.shape[3])
        return self.encoder(images)

    def _decode(self, vectors: list[Tensor]) -> Tensor:
        return self.decoder(self.post_quant(torch.cat(vectors, 1).to(self.post_quant.weight.dtype)))


def _branch(config: TokenizerConfig, factor: FactorConfig, entropy_temperature: float, gradient: str) -> Branch:
    width = config.channels * config.channel_multipliers[-1]
    adapter: nn.Module = nn.Identity()
    if factor.adapter_depth:
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
    quantizer = VectorQuantizer(factor.codebook_size, factor.code_dim, entropy_temperature, gradient)
    return Branch(adapter, width, config.z_channels, quantizer, head)


def load_matching_tokenizer(
    path: str | Path,
    fingerprint: str,
    owner: str,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    weights: str = "auto",
) -> FactorizedTokenizer:
    """The tokenizer at `path`, which must be the one of this fingerprint; `UserError` names it and `owner` otherwise.
    Without a fingerprint a warning says that nothing was compared."""
    tokenizer = FactorizedTokenizer.from_pretrained(path, device, weights, precision)
    if not fingerprint:
        say(f"fqgan: warning: {owner} does not say which tokenizer it belongs to; taking {path}", error=True)
    elif tokenizer.fingerprint() != fingerprint:
        raise UserError(f"the tokenizer {path} is not the one that {owner} was made with: its codes mean other things")
    return tokenizer


def num_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())
