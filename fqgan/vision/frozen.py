"""What the pretrained networks share: they never train, and their weights come from files that are never trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fqgan.errors import UserError


class FrozenModule(nn.Module):
    """A module that stays in eval mode whatever `train()` is called on it or on a module that holds it."""

    def freeze(self) -> Self:
        """Turn off the parameters' gradients. Subclasses call it at the end of `__init__`."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode; `mode` is ignored."""
        return super().train(False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a torch file, on the CPU. Truncated and foreign files raise `UserError`."""
    try:
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways: pickle, zip, runtime, key and end-of-file errors
        raise UserError(f"{path} is damaged or no file of torch weights: {in_one_line(error)}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no dictionary of tensors")
    return weights


def in_one_line(error: Exception) -> str:
    """What a library says is wrong, without line breaks and cut at 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
