"""The classifier's training task: cross-entropy on labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.classifier.model import NAME, Classifier, correct
from fqgan.config import ClassifierRunConfig
from fqgan.data.loader import check_ranks
from fqgan.data.picture_task import PictureTask
from fqgan.data.sources import ImageSource, announce, open_data
from fqgan.data.transforms import normalize
from fqgan.engine.devices import exact_device, upload
from fqgan.engine.distributed import World, all_reduce_sum
from fqgan.engine.optim import make_optimizer
from fqgan.engine.run import RunFolder
from fqgan.engine.session import session, train
from fqgan.engine.speed import autocast
from fqgan.engine.stops import Agreed
from fqgan.engine.task import Phase

Batch = tuple[Tensor, Tensor]


class ClassifierTask(PictureTask[ClassifierRunConfig]):
    """One phase; validation counts correct answers."""

    def __init__(self, config: ClassifierRunConfig, world: World, source: ImageSource, validation: ImageSource | None):
        super().__init__(config, world, source, validation)
        torch.manual_seed(config.train.seed)
        model = Classifier(config.model).to(world.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.phases = [Phase(NAME, model, make_optimizer(model, config.optimizer), self._loss)]

    def _loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        with autocast(self.world.device, self.config.train.precision):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.config.label_smoothing)
        return loss, {"loss": loss.detach(), "accuracy": correct(logits, labels).mean()}

    def batches(self, start_step: int) -> Iterator[Batch]:
        for raw, labels in self.raw_batches(start_step):
            yield self._place(raw), labels.to(self.world.device, non_blocking=True)

    def _place(self, raw: Tensor) -> Tensor:
        return normalize(upload(raw, self.world.device)).contiguous(memory_format=torch.channels_last)

    def meters(self) -> dict[str, float]:
        return self.unreadable.compute(all_reduce_sum)

    def meter_state(self) -> dict[str, Tensor]:
        return {"unreadable": self.unreadable.state()}

    def load_meter_state(self, state: dict[str, Tensor]) -> None:
        self.unreadable.load_state(state["unreadable"])

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> dict[str, float]:
        if self.validation is None:
            return {}
        sums = torch.zeros(2, dtype=torch.float64, device=exact_device(self.world.device))
        agreed = Agreed(self.validation_batches(self.validation))
        for raw, labels, _ in agreed:
            with autocast(self.world.device, self.config.train.precision):
                hits = correct(model(self._place(raw)), labels.to(self.world.device))
            sums += torch.stack([hits.sum(), torch.ones_like(hits).sum()]).to(sums.device)
        hits, seen = all_reduce_sum(sums).tolist()
        agreed.check()
        return {"accuracy": hits / seen} if seen else {}

    def picture(self, model: nn.Module, path: Path) -> None:
        """A classifier makes none."""


def train_classifier(config: ClassifierRunConfig, path: Path) -> None:
    """Train, or go on training, the run in folder `path`. Bad settings and data raise `UserError` before it exists."""
    config.check()
    with session(config.train) as world:
        if not config.data.source:
            raise UserError(
                "--data.source is missing: photos, cifar10, a folder of class folders, parquet files or tars"
            )
        source, validation = open_data(config.data)
        check_ranks(source, world.size)
        model = replace(config.model, num_classes=_num_classes(config, source, validation))
        config = replace(config, model=model)
        check_output(path, folder=True, option="--run", inputs=[config.data.source, config.data.validation])
        run = RunFolder(path, config)
        if world.is_main:
            for each in filter(None, (source, validation)):
                announce(each, config.model.image_size)
        train(ClassifierTask(config, world, source, validation), run, world, len(source))


def _num_classes(config: ClassifierRunConfig, source: ImageSource, validation: ImageSource | None) -> int:
    """As set, or as the data have them. `UserError` for pictures without a class, or of one that is not known."""
    for each in filter(None, (source, validation)):
        if each.labels.min() < 0:
            raise UserError(f"{each.name} holds pictures without a class: a classifier needs labels")
    count = config.model.num_classes or max(len(source.classes), int(source.labels.max()) + 1)
    for each in filter(None, (source, validation)):
        if each.labels.max() >= count:
            raise UserError(f"{each.name} has the label {each.labels.max()}, and the classifier {count} classes")
    if count < 2:
        raise UserError(f"{source.name} has one class only: there is nothing to tell apart")
    return count
