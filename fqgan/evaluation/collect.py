"""The features of one set of images, gathered batch by batch and over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.spread import spread_evenly
from fqgan.config.evaluation import LikelihoodEvaluation, Measuring
from fqgan.data.loader import evaluation_batches
from fqgan.data.sources import ImageSource
from fqgan.data.workers import Batches
from fqgan.engine.distributed import World, all_reduce_sum
from fqgan.engine.sizes import check_pictures
from fqgan.metrics.bank import FeatureBank
from fqgan.metrics.frechet import FeatureStatistics, Gaussian
from fqgan.metrics.inception_score import InceptionScore
from fqgan.nets.measuring import FeatureNetwork


@dataclass(frozen=True)
class FeatureSet:
    """What the scores need of a set."""

    pooled: Gaussian
    """Of the features; its count is 0 where a file of statistics does not tell it."""
    spatial: Gaussian | None = None
    """Of Inception's spatial features."""
    half: Gaussian | None = None
    """`pooled` of one of every two images."""
    features: Tensor | None = None
    """(n, dim) float32: those that are kept for the metrics that compare images with images."""
    score: dict[str, float] | None = None
    """`InceptionScore.compute` of the logits."""


class FeatureCollector:
    """Takes in the images of a set, on all ranks and in any order.

    Args:
        indices: of all images that will come, over all ranks, rising.
        kept: images at most whose features are kept, spread evenly.
    """

    def __init__(self, network: FeatureNetwork, indices: Sequence[int], kept: int, device: torch.device | str):
        self.network, self.device = network, device
        self._indices = torch.tensor(indices, dtype=torch.int64)
        count = len(indices)
        self._in_half = torch.zeros(count, dtype=torch.bool, device=device)
        half = torch.tensor(spread_evenly(count, (count + 1) // 2), dtype=torch.int64, device=device)
        self._in_half[half] = True
        self._pooled, self._half = FeatureStatistics(network.dim, device), FeatureStatistics(network.dim, device)
        self._spatial = FeatureStatistics(network.spatial_dim, device) if network.spatial_dim else None
        self._bank = FeatureBank(count, network.dim, kept, device)
        self._score = InceptionScore(count, network.num_classes, device=device) if network.num_classes else None
        self._broken = torch.zeros((), dtype=torch.int64, device=device)

    @torch.inference_mode()
    def update(self, images: Tensor, indices: Tensor) -> None:
        """Add uint8 images (b, 3, H, W) and their indices (b,)."""
        found = self.network(images.to(self.device))
        positions = torch.searchsorted(self._indices, indices.cpu()).to(self.device)
        self._broken += (~torch.isfinite(found.pooled).all(1)).sum()
        self._pooled.update(found.pooled)
        self._half.update(found.pooled[self._in_half[positions]])
        self._bank.update(found.pooled, positions)
        if self._spatial is not None and found.spatial is not None:
            self._spatial.update(found.spatial)
        if self._score is not None and found.logits is not None:
            self._score.update(found.logits, positions)

    @torch.inference_mode()
    def compute(self) -> FeatureSet:
        """Over all ranks; called by all of them. `UserError` for fewer than two images, and for features that are not
        finite."""
        if broken := int(all_reduce_sum(self._broken.clone())):
            raise UserError(
                f"the features of {broken} of {len(self._indices)} pictures are not finite (NaN or infinite): the "
                f"weights of {self.network.name} are damaged, or overflow on these pictures"
            )
        pooled = self._gaussian(self._pooled)
        if pooled is None:
            raise UserError("at least two readable pictures are needed: a covariance has no meaning for fewer")
        return FeatureSet(
            pooled,
            self._gaussian(self._spatial) if self._spatial else None,
            self._gaussian(self._half),
            self._bank.compute(all_reduce_sum),
            self._score.compute(all_reduce_sum) if self._score else None,
        )

    def _gaussian(self, statistics: FeatureStatistics) -> Gaussian | None:
        try:
            return statistics.compute(all_reduce_sum)
        except ValueError:  # on all ranks alike
            return None


class LeftUnmeasured(NamedTuple):
    """Pictures of a set that were not measured as they are, over all ranks."""

    unreadable: int
    skipped: int
    """Below the size, and left out."""
    enlarged: int

    @classmethod
    def of(cls, batches: Batches[Any], source: ImageSource, world: World) -> LeftUnmeasured:
        """Of a set that was read; called by all ranks."""
        counts = torch.tensor([batches.unreadable, batches.small], device=world.device)
        unreadable, small = map(int, all_reduce_sum(counts))
        skip = source.options.small == "skip"
        return cls(unreadable, small if skip else 0, 0 if skip else small)


@dataclass(frozen=True)
class CentreCrops:
    """How a set is read: with the settings of an evaluation, as centre crops of `size` pixels a side."""

    settings: Measuring
    size: int

    def indices(self, source: ImageSource) -> list[int]:
        """All images that are read, over all ranks."""
        return spread_evenly(len(source), self.settings.limit)

    def batches(self, source: ImageSource, world: World) -> Batches[tuple[Tensor, Tensor, Tensor]]:
        """This rank's share of them, as `centre_crops`."""
        return centre_crops(source, self.size, self.settings, world)


def centre_crops(
    source: ImageSource, size: int, settings: Measuring | LikelihoodEvaluation, world: World
) -> Batches[tuple[Tensor, Tensor, Tensor]]:
    """This rank's share of a set: uint8 images (b, 3, size, size), labels (b,) and indices (b,). `UserError` for
    pictures that cannot fit into memory."""
    check_pictures(settings.batch, size, 3, torch.device("cpu"))
    return evaluation_batches(
        source,
        size=size,
        batch=settings.batch,
        limit=settings.limit,
        workers=settings.workers,
        rank=world.rank,
        world=world.size,
    )


def collect(
    network: FeatureNetwork,
    source: ImageSource,
    reading: CentreCrops,
    world: World,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[FeatureSet, LeftUnmeasured]:
    """The features of a source, and how many of its pictures were left out; called by all ranks. `advance` is called
    with the number of images that this rank has seen since its last call."""
    collector = FeatureCollector(network, reading.indices(source), reading.settings.kept, world.device)
    batches = reading.batches(source, world)
    for images, _, indices in batches:
        collector.update(images, indices)
        advance(len(images))
    left_out = LeftUnmeasured.of(batches, source, world)
    try:
        return collector.compute(), left_out
    except UserError as error:
        raise UserError(f"{source.name}: {error}") from None
