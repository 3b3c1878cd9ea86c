"""What callers ask of a tokenizer, this package's or anybody's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers
from fqgan.config import FactorConfig


class Layout(Protocol):
    """What callers ask of a tokenizer's configuration."""

    @property
    def image_size(self) -> int: ...
    @property
    def downsampling(self) -> int: ...
    @property
    def map_channels(self) -> int: ...
    @property
    def factors(self) -> tuple[FactorConfig, ...]: ...


class Tokenizer(Protocol):
    """What reconstructing, extracting and measuring ask of a tokenizer, this package's or anybody's."""

    precision: str
    chosen: str
    """Which weights were loaded: `ema`, `raw`, or `exported` where they have no such name."""

    @property
    def config(self) -> Layout: ...
    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Of each factor's codes; empty of a tokenizer without codes, whose `encode` gives latents."""
        ...

    @property
    def separate(self) -> tuple[str, ...]:
        """Names of the factors that `decode` can keep alone, if there are several."""
        ...

    @property
    def device(self) -> torch.device: ...
    def encode(self, images: Numbers, *, values: bool = True) -> Tensor:
        """Codes (b, k, H/f, W/f) int64 or latents (b, c, H/f, W/f) of images (b, 3, H, W)."""
        ...

    def decode(self, codes: Numbers, keep: Any = None, *, values: bool = True) -> Tensor:
        """Images (b, 3, H, W), not clipped, of codes or latents."""
        ...

    def check_codes(self, codes: Numbers) -> Tensor:
        """What `decode` takes, on the device; `UserError` for anything else."""
        ...

    def check_size(self, height: int, width: int) -> None: ...
    def fingerprint(self) -> str: ...
    def export(self, folder: str | Path) -> Path: ...
    def parameters(self) -> Iterable[nn.Parameter]: ...


def check_sides(height: int, width: int, f: int, whose: str = "the tokenizer") -> None:
    """`UserError` unless both sides of an image are positive multiples of the downsampling factor f."""
    if height % f or width % f or min(height, width) < f:
        raise UserError(f"image size {width}x{height} is no multiple of {whose}'s downsampling factor {f}")


def own_grid(tokenizer: Tokenizer) -> tuple[int, int]:
    """Rows and columns of positions of a picture of the size that a tokenizer was trained at."""
    side = tokenizer.config.image_size // tokenizer.config.downsampling
    return side, side


def needed_codes(tokenizer: Tokenizer, name: object) -> tuple[int, ...]:
    """Sizes of a tokenizer's codebooks; `UserError` where it has none."""
    if not tokenizer.codebook_sizes:
        raise UserError(f"{name} is continuous: it encodes to latents and has no codes, which are asked for here")
    return tokenizer.codebook_sizes
