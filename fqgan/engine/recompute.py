"""Activation checkpointing as a switch of a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A block. With `recompute` its backward pass recomputes what its forward pass would keep.

    The gradients stay the same bit for bit: the random state of dropout is restored.
    """

    recompute = False

    def forward(self, *inputs: Any) -> Tensor:
        """What `compute` gives."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self.compute(*inputs)

    def compute(self, *inputs: Any) -> Tensor:
        """What the block does."""
        raise NotImplementedError
