"""What is known of a tokenizer of others."""

from __future__ import annotations

from dataclasses import dataclass, field

from fqgan.base.errors import UserError
from fqgan.config.factor import MOST_FACTORS, FactorConfig


@dataclass(frozen=True)
class ForeignConfig:
    """What one picture that passed through a tokenizer of others told. A token store and a generator carry it in place
    of the tokenizer."""

    address: str
    """`py:module:function`, `py:file.py:function`, `diffusers:folder-or-id` or `split:SIZE:TOKENIZER`."""
    image_size: int = 256
    downsampling: int = 1
    factors: tuple[FactorConfig, ...] = ()
    """Without codes one, of 0 codes, whose dimension is that of the latents. Dimension 0: not known."""
    kind: str = ""
    """Class of the object."""
    facts: dict = field(default_factory=dict)
    """Entries of a diffusers config.json that tell one published model from another."""
    map_channels: int = 128
    """Width at full resolution, for estimates of memory."""

    def check(self) -> None:
        """Raise `UserError` for what no tokenizer is."""
        sides = 1 <= self.downsampling <= self.image_size <= 2**16
        codes = all(0 <= factor.codebook_size <= 2**24 for factor in self.factors)
        if not (sides and codes and 1 <= len(self.factors) <= MOST_FACTORS):
            raise UserError("model makes no sense: the file was changed, or is damaged")
