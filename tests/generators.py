"""A small generator for tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from fqgan.config import GeneratorConfig
from fqgan.generator.model import FAR

TINY = GeneratorConfig((7, 11, 5), (3, 4), 6, width=32, depth=2, heads=4, mlp_multiple=16, head_depth=2, dropout=0.0)


def tiny(**changes: object) -> FAR:
    """A small model whose outputs are not zero."""
    torch.manual_seed(0)
    model = FAR(replace(TINY, **changes)).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
