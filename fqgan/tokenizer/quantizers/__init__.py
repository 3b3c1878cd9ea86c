"""Quantizers, by the names that `FactorConfig.quantizer` knows them by."""

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.config import FactorConfig
from fqgan.tokenizer.quantizers.base import Quantizer
from fqgan.tokenizer.quantizers.binary import LookupFreeQuantizer, SphericalQuantizer
from fqgan.tokenizer.quantizers.euclidean import EuclideanQuantizer, SimQuantizer
from fqgan.tokenizer.quantizers.index import IndexQuantizer
from fqgan.tokenizer.quantizers.scalar import ScalarQuantizer
from fqgan.tokenizer.quantizers.vector import VectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "vq": VectorQuantizer,
    "vq-euclidean": EuclideanQuantizer,
    "simvq": SimQuantizer,
    "fsq": ScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": SphericalQuantizer,
    "ibq": IndexQuantizer,
}


def quantizer_class(factor: FactorConfig) -> type[Quantizer]:
    """The class of a factor's quantizer; `UserError` for an unknown one."""
    name = factor.quantizer
    if name not in QUANTIZERS:
        known = f"{did_you_mean(name, QUANTIZERS)} (quantizers: {', '.join(QUANTIZERS)})"
        raise UserError(f"factor {factor.name}: unknown quantizer {name!r}{known}")
    return QUANTIZERS[name]


def make_quantizer(
    factor: FactorConfig, entropy_temperature: float = 0.01, gradient: str = "straight-through"
) -> Quantizer:
    """The quantizer of a factor; `UserError` for an unknown one, and for sizes that it cannot have."""
    kind = quantizer_class(factor)
    if gradient == "rotation" and not kind.unit_length:
        raise UserError(
            f"quantizer.gradient rotation needs codes of unit length ({names_where('unit_length')}), and factor "
            f"{factor.name} has {factor.quantizer}: set it to straight-through"
        )
    return kind.of(factor, entropy_temperature, gradient)


def names_where(trait: str) -> str:
    """The quantizers that have a trait (`unit_length`, `residual`), for a sentence."""
    return ", ".join(name for name, kind in QUANTIZERS.items() if getattr(kind, trait))
