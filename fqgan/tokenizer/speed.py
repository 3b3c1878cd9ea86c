"""Switches that change how fast a tokenizer trains, and in how much memory, but not what it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fqgan.config import TokenizerConfig
from fqgan.engine.speed import compile_parts
from fqgan.tokenizer.blocks import Block, TransformerBlock
from fqgan.tokenizer.model import FactorizedTokenizer

_LARGE_SIDE = 64  # of the first feature map: from here on a CPU gains from channels_last


def memory_format(choice: str, device: torch.device, model: TokenizerConfig) -> torch.memory_format:
    """The layout that `train.channels_last` (`auto`, `on`, `off`) means for a model on a device.

    `auto` takes what measured faster: channels_last on CUDA, and on a CPU where feature maps are large. On small ones
    GroupNorm in channels_last costs a CPU more than the convolutions gain. MPS keeps the usual layout: nobody measured.
    """
    large = device.type == "cuda" or (device.type == "cpu" and model.image_size // model.stem >= _LARGE_SIDE)
    return torch.channels_last if choice == "on" or (choice == "auto" and large) else torch.contiguous_format


def recompute_activations(model: nn.Module, blocks: str) -> None:
    """Let blocks recompute their activations in the backward pass: `none`, those of `transformer`s, or `all`."""
    kind = {"none": (), "transformer": TransformerBlock, "all": Block}[blocks]
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = isinstance(module, kind)


def compile_tokenizer(model: FactorizedTokenizer, device: torch.device) -> bool:
    """torch.compile the encoder, the decoder, the adapters and the feature heads, in place; names of weights stay.

    The quantizers stay as they are: their loop over chunks gains nothing. Where compiling does not work, one warning
    says so (`compile_parts`). Returns whether it was done.
    """
    parts: list[Any] = [model.encoder, model.decoder]
    for branch in model.branches:
        parts += [branch.adapter, branch.head]
    return compile_parts((part for part in parts if part is not None and not isinstance(part, nn.Identity)), device)
