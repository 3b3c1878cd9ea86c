"""Quantizers, by the names that `FactorConfig.quantizer` knows them by."""

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.config import FactorConfig
from fqgan.tokenizer.quantizers.base import Quantizer
from fqgan.tokenizer.quantizers.vector import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {"vq": VectorQuantizer}


def make_quantizer(
    factor: FactorConfig, entropy_temperature: float = 0.01, gradient: str = "straight-through"
) -> Quantizer:
    """The quantizer of a factor; `UserError` for an unknown one, and for sizes that it cannot have."""
    name = factor.quantizer
    if name not in QUANTIZERS:
        known = f"{did_you_mean(name, QUANTIZERS)} (quantizers: {', '.join(QUANTIZERS)})"
        raise UserError(f"factor {factor.name}: unknown quantizer {name!r}{known}")
    return QUANTIZERS[name](factor.codebook_size, factor.code_dim, entropy_temperature, gradient)
