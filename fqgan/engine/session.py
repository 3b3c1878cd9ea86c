"""What every training command does around its task: device, ranks, run folder, and the end of all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.config import TrainConfig
from fqgan.engine import distributed
from fqgan.engine.distributed import World
from fqgan.engine.logs import load_wandb
from fqgan.engine.run import RunFolder
from fqgan.engine.sizes import micro_batch, num_parameters, total_steps
from fqgan.engine.speed import has_bf16, keep_freed_memory
from fqgan.engine.trainer import Task, Trainer


@contextmanager
def running(device: str) -> Iterator[World]:
    """This process's place among the ranks (one of one, without torchrun), for the length of a verb.

    `UserError` for a device that is not there.
    """
    keep_freed_memory()
    world = distributed.start(device)
    try:
        yield world
    finally:
        distributed.stop()


@contextmanager
def session(config: TrainConfig) -> Iterator[World]:
    """This process's place in a training run. `UserError` where the batch does not split over the ranks."""
    with running(config.device) as world:
        micro_batch(config, world.size)
        if config.deterministic:
            # without it cuBLAS refuses to be deterministic; it is read once, by a process's first product on a GPU
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        with deterministic_mode(config.deterministic or torch.are_deterministic_algorithms_enabled()):
            yield world


@contextmanager
def deterministic_mode(on: bool) -> Iterator[None]:
    """Within, torch's deterministic mode is on or off."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def train(task: Task, run: RunFolder, world: World, images: int) -> None:
    """Train `task` on a data set of `images` images, or go on where the run folder's last checkpoint ends."""
    config = run.config
    if config.train.wandb:
        load_wandb()
    resume = distributed.from_main(run.open)
    try:
        steps = total_steps(config.train, images)
        if world.is_main:
            parameters = num_parameters(task.phases[0].module)
            epochs = steps * config.train.batch / images
            say(
                f"{parameters / 1e6:.1f} M parameters, {images} images, {steps} steps of {config.train.batch} "
                f"({epochs:.1f} epochs) on {world.size} x {world.device.type}, run {run.path}"
            )
            if config.train.precision == "bf16" and not has_bf16(world.device):
                then = "is up to ten times as fast" if world.device.type == "cpu" else "is what it computes in"
                say(f"warning: this {world.device.type.upper()} has no bf16: --train.precision float32 {then}")
        task.start(run, fresh=resume is None)
        Trainer(task, run, world, steps, config.train, config.optimizer).fit(resume)
    except UserError:
        if world.is_main:
            run.abandon()
        raise
    finally:
        run.close()
