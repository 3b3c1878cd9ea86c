"""What training on pictures shares, whatever is trained: batches, validation's batches, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

from fqgan.config import ClassifierRunConfig, TokenizerRunConfig
from fqgan.data.fingerprint import data_fingerprint
from fqgan.data.loader import evaluation_batches, training_batches
from fqgan.data.sources import ImageSource
from fqgan.data.unreadable import UnreadableMeter
from fqgan.data.workers import Batches
from fqgan.engine.devices import upload
from fqgan.engine.distributed import World
from fqgan.engine.sizes import micro_batch, share_of
from fqgan.engine.task import Task

Config = TypeVar("Config", ClassifierRunConfig, TokenizerRunConfig)


class PictureTask(Task, Generic[Config]):
    """A task whose batches are pictures of a source."""

    def __init__(self, config: Config, world: World, source: ImageSource, validation: ImageSource | None):
        self.config, self.world, self.source, self.validation = config, world, source, validation
        self.unreadable = UnreadableMeter(config.data.max_unreadable, world.device)
        self._fingerprint = data_fingerprint(source)
        self._seen = (0, 0, 0)

    def raw_batches(self, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's micro-batches from a step on: uint8 images, on its device, and labels."""
        config, device = self.config, self.world.device
        loader = training_batches(
            self.source,
            config.data,
            size=config.model.image_size,
            seed=config.train.seed,
            **share_of(config.train, self.world, start_step),
            pin_memory=device.type == "cuda",
        )
        for raw, labels in loader:
            self._seen = config.train.batch * (self.step - start_step + 1), loader.unreadable, loader.small
            yield upload(raw, device), labels

    def validation_batches(self, validation: ImageSource) -> Batches[tuple[Tensor, Tensor, Tensor]]:
        """This rank's share of a validation."""
        config = self.config
        return evaluation_batches(
            validation,
            size=config.model.image_size,
            batch=micro_batch(config.train, self.world.size),
            limit=config.train.validation_images,
            workers=config.data.workers,
            rank=self.world.rank,
            world=self.world.size,
        )

    def after_step(self) -> None:
        self.unreadable.update(*self._seen)

    def data_fingerprint(self) -> dict[str, Any]:
        return self._fingerprint

    def check(self) -> None:
        self.unreadable.check()
