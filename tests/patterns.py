"""Made-up images in [-1, 1] for the frozen networks."""

from __future__ import annotations

import torch
from torch import Tensor


def pattern(height: int, width: int) -> Tensor:
    """A fixed image (1, 3, height, width) in [-1, 1]."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    return torch.stack([torch.sin(0.11 * (c + 1) * x + 0.07 * y * (c + 2)) for c in range(3)])[None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
