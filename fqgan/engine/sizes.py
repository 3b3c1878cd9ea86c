"""How much a run takes: its steps, each rank's part of a batch, and whether it can fit into memory, by arithmetic."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from fqgan.base.errors import UserError
from fqgan.config import OptimizerConfig, TrainConfig
from fqgan.engine.distributed import World

_NUMBER = 4
"""Bytes of a float32 number."""


class Share(TypedDict):
    """A rank's part of the batches from a step on, as `fqgan.data.order.SampleStream.batches` takes it."""

    batch: int
    micro_batch: int
    rank: int
    world: int
    start_step: int


def share_of(config: TrainConfig, world: World, start_step: int) -> Share:
    """This rank's part; `UserError` when the global batch does not split."""
    micro = micro_batch(config, world.size)
    return Share(batch=config.batch, micro_batch=micro, rank=world.rank, world=world.size, start_step=start_step)


def micro_batch(config: TrainConfig, ranks: int) -> int:
    """Images of a rank at a time; `UserError` when the global batch does not split."""
    micro = config.micro_batch or config.batch // ranks
    if not micro or config.batch % (micro * ranks):
        raise UserError(
            f"train.batch {config.batch} is no multiple of train.micro_batch {micro or 1} times {ranks} rank(s)"
        )
    return micro


def total_steps(config: TrainConfig, images: int) -> int:
    """Optimizer steps of a run: as set, or from the epochs."""
    return config.steps or max(1, round(config.epochs * images / config.batch))


def num_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen or not."""
    return sum(parameter.numel() for parameter in module.parameters())


def memory_of(device: torch.device) -> int:
    """Bytes that a device has, and that this process may use of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        limits.append(limit)
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def check_memory(needed: int, what: str, device: torch.device) -> None:
    """`UserError` where `needed` bytes are more than a device has."""
    if needed > (there := memory_of(device)):
        where = "this machine" if device.type == "cpu" else "the GPU"
        raise UserError(f"{what} need at least {_readable(needed)}, and {where} has {_readable(there)}")


def check_pictures(count: int, size: int, channels: int, device: torch.device) -> None:
    """`UserError` where pictures of `size` pixels, with one map of `channels` features at full size, cannot fit."""
    needed = count * size**2 * (3 + channels) * _NUMBER
    check_memory(needed, f"{count} picture(s) of {size} pixels at a time", device)


def check_training(model: nn.Module, optimizer: OptimizerConfig, config: TrainConfig, world: World, rows: int) -> None:
    """`UserError` where training cannot fit: weights, gradients, moments and average of `model` (on the meta device,
    say), and of each sample of a micro-batch `rows` numbers at least."""
    count = num_parameters(model)
    copies = 3 + (optimizer.kind == "adam") + bool(config.ema_decay)
    share = world.size if getattr(config, "fsdp", False) else 1
    check_memory(count * copies * _NUMBER // share, f"{count:,} parameters in training", world.device)
    size = 2 if config.precision == "bf16" else _NUMBER
    batch = micro_batch(config, world.size)
    check_memory(batch * rows * size, f"{batch:,} samples at a time (--train.micro-batch)", world.device)


def _readable(count: int) -> str:
    """`3.2 GB`; sizes beyond all machines as a power of ten."""
    return f"{count / 1e9:,.1f} GB" if count < 10**24 else f"10^{len(str(count)[:4000]) - 10} GB"
