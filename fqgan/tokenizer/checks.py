"""What is looked at, said and settled before a tokenizer's training begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.config import FactorConfig, TokenizerConfig, TokenizerRunConfig, teacher_dim
from fqgan.engine.distributed import World
from fqgan.engine.sizes import check_training
from fqgan.nets.features import Teacher
from fqgan.tokenizer.compositions import make_composition
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.quantizers import make_quantizer, names_where, quantizer_class


def announce_factors(config: TokenizerConfig) -> None:
    """What was understood of factors that are not the paper's: sizes follow from levels and bits."""
    if config.composition != TokenizerConfig.composition:
        shared = ", one codebook for all" if config.shared_codebook else ""
        say(f"composition of the factors: {config.composition}{shared}")
    for factor in config.factors:
        if factor.quantizer != FactorConfig.quantizer:
            say(f"factor {factor.describe()}")


def check_quantizers(config: TokenizerRunConfig) -> None:
    """`UserError` for quantizers that cannot be made or put together, before data and teachers are waited for."""
    make_composition(config.model)
    uneven = [factor for factor in config.model.factors if not quantizer_class(factor).unit_length]
    if config.loss.disentangle_weight and len(config.model.factors) > 1 and uneven:
        raise UserError(
            f"loss.disentangle_weight needs codes of unit length ({names_where('unit_length')}; Eq. 7), and factor "
            f"{uneven[0].name} has {uneven[0].quantizer}: set it to 0"
        )
    with torch.device("meta"):
        for factor in config.model.factors:
            make_quantizer(factor, gradient=config.quantizer.gradient)


def check_memory(config: TokenizerRunConfig, world: World) -> None:
    """`UserError` where the machine is too small: by the model's size, and two maps of each picture at least."""
    with torch.device("meta"):
        model = FactorizedTokenizer(config.model)
    shape, pixels = config.model, config.model.image_size**2
    rows = 3 * pixels + (shape.channels + shape.decoder_shape[0]) * pixels // shape.stem**2
    check_training(model, config.optimizer, config.train, world, rows)


def with_teacher_dims(config: TokenizerRunConfig, teachers: Mapping[str, Teacher]) -> TokenizerRunConfig:
    """The config with each teacher's dimension written in, so that checkpoints load without the teacher, and with the
    network that judges."""
    factors = []
    for factor in config.model.factors:
        dims = {}
        for field in ("teacher", "spatial_teacher"):
            name, given = getattr(factor, field), getattr(factor, f"{field}_dim")
            dim = teachers[name].dim if name in teachers else teacher_dim(factor, field) if name else 0
            dims[f"{field}_dim"] = dim
            if given not in (0, dim):
                raise UserError(f"factor {factor.name}: teacher {name} has {dim} dims, not {given}")
        factors.append(replace(factor, **dims))
    return replace(config, model=replace(config.model, factors=tuple(factors), critic=config.discriminator.network))
