"""What the pretrained networks share: they never train, and their weights come from files that are never trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.models.pickles import load_pickle


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
    weights = load_pickle(path)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no dictionary of tensors")
    return weights
