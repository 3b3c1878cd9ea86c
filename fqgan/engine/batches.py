"""How many optimizer steps a run takes, and which part of each batch is this rank's."""

from __future__ import annotations

from typing import TypedDict

from fqgan.base.errors import UserError
from fqgan.config import TrainConfig
from fqgan.engine.distributed import World


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
