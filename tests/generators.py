"""A small generator for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from fqgan.config import GeneratorConfig
from fqgan.generator.model import FAR
from fqgan.tokenizer.model import FactorizedTokenizer

NAMES = ("cat", "dog", "tench, Tinca tinca")
TINY = GeneratorConfig((7, 11, 5), (3, 4), 6, width=32, depth=2, heads=4, mlp_multiple=16, head_depth=2, dropout=0.0)


def tiny(**changes: object) -> FAR:
    """A small model whose outputs are not zero."""
    torch.manual_seed(0)
    model = FAR(replace(TINY, **changes)).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def paired(tokenizer: FactorizedTokenizer) -> FAR:
    """A small one for the tiny tokenizer's 8 x 8 positions, whose outputs are not zero, with names of its classes."""
    model = tiny(codebook_sizes=(32, 16), grid=(8, 8), num_classes=3, head_depth=1)
    model.label_names = NAMES
    model.carry(tokenizer)
    return model
