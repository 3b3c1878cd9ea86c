"""Optimizer, learning-rate schedule and the weights' moving average."""

from __future__ import annotations

import math

import torch
from torch import nn

from fqgan.config import OptimizerConfig
from fqgan.engine.muon import Muon, split_decayed


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a network's parameters. Learning rates are the trainer's to set."""
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    if config.kind == "muon":
        return Muon(module, config.lr, betas, config.momentum, decay)
    if not decay:
        return torch.optim.Adam(module.parameters(), config.lr, betas, fused=True)
    matrices, others = split_decayed(module.parameters())
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.lr, betas, fused=True)


def state_entries(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> set[str]:
    """Names of what an optimizer of `make_optimizer` keeps of a parameter: tensors of its shape, but for `step`."""
    if isinstance(optimizer, Muon) and any(parameter is other for other in optimizer.param_groups[1]["params"]):
        return {"momentum"}
    return {"step", "exp_avg", "exp_avg_sq"}


def align_gradients(module: nn.Module) -> None:
    """Give each gradient the strides of its parameter: fused Adam on CUDA refuses all others.

    Compiled 1x1 convolutions return such, in the same memory order (pytorch issue 126585).
    """
    for parameter in module.parameters():
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of optimizer step `step` in [0, steps): linear warm-up, then as `OptimizerConfig.schedule` says."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    cooldown = config.schedule == "cooldown"
    start = max(config.warmup_steps, steps * (1 - config.cooldown)) if cooldown else config.warmup_steps
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    height = 1 - progress if cooldown else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr + (1 - config.final_lr) * height)


class Ema:
    """Exponential moving average of a module's weights; buffers are copied.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that the first weights are soon forgotten.

    Args:
        module: a copy of the module, which becomes the average.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.module = module.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # on a GPU a few launches for all of them
        torch._foreach_lerp_([*self.module.parameters()], [*module.parameters()], 1 - decay)  # pyright: ignore
        for own, new in zip(self.module.buffers(), module.buffers(), strict=True):
            own.copy_(new)
