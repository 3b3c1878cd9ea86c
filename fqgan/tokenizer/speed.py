"""Switches that change how fast a tokenizer trains, and in how much memory, but not what it learns."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import nn

from fqgan.config import TokenizerConfig
from fqgan.engine.distributed import all_reduce_sum
from fqgan.tokenizer.blocks import Block, TransformerBlock
from fqgan.tokenizer.model import FactorizedTokenizer

_LARGE_SIDE = 64  # of the first feature map: from here on a CPU gains from channels_last


def memory_format(choice: str, device: torch.device, model: TokenizerConfig) -> torch.memory_format:
    """The layout that `train.channels_last` (`auto`, `on`, `off`) means for a model on a device.

    `auto` takes what measured faster: channels_last on a GPU, and on a CPU where feature maps are large. On small ones
    GroupNorm in channels_last costs a CPU more than the convolutions gain.
    """
    large = device.type == "cuda" or model.image_size // model.stem >= _LARGE_SIDE
    return torch.channels_last if choice == "on" or (choice == "auto" and large) else torch.contiguous_format


def recompute_activations(model: nn.Module, blocks: str) -> None:
    """Let blocks recompute their activations in the backward pass: `none`, those of `transformer`s, or `all`."""
    kind = {"none": (), "transformer": TransformerBlock, "all": Block}[blocks]
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = isinstance(module, kind)


def compile_tokenizer(model: FactorizedTokenizer, device: torch.device) -> bool:
    """torch.compile the encoder, the decoder, the adapters and the feature heads, in place; names of weights stay.

    The quantizers stay as they are: their loop over chunks gains nothing. Where compiling does not work, on whichever
    rank, one warning says so and nothing is compiled. Returns whether it was done.
    """
    problem = _compile_problem(device)
    if all_reduce_sum(torch.tensor(float(bool(problem)), device=device)):
        reason = problem or "it fails on another rank"
        print(f"fqgan: warning: train.compile has no effect here, torch.compile fails: {reason}", file=sys.stderr)
        return False
    parts: list[Any] = [model.encoder, model.decoder]
    for branch in model.branches:
        parts += [branch.adapter, branch.head]
    for part in parts:
        if part is not None and not isinstance(part, nn.Identity):
            part.compile()
    return True


def _compile_problem(device: torch.device) -> str:
    """Why nothing can be compiled for a device, in a line; empty if a small function can."""
    salt = random.SystemRandom().randrange(2**31)  # a constant that no cache of compiled code has seen
    try:
        compiled = torch.compile(lambda x: (x * 2 + salt).relu(), dynamic=False)
        compiled(torch.ones(64, device=device))
    except Exception as error:  # whatever the compiler and its helpers raise
        torch.compiler.reset()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ""
