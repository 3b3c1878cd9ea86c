"""How near generated images come to real ones, and whether they show the class that was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fqgan.metrics.class_means import NearestClassMean
from fqgan.metrics.frechet import FeatureStatistics, frechet_distance
from fqgan.nets.efficientnet import POOLED_DIM, EfficientNetLite0

LabelledImages = Iterable[tuple[Tensor, Tensor]]
"""Batches of images (b, 3, H, W) in [-1, 1] and their classes (b,)."""


class Judge:
    """Compares sets of images with a reference set of real ones, on the packaged network's pooled features.

    Args:
        reference: what the Frechet distance is taken to, and the class means are fitted on.
    """

    def __init__(
        self, network: EfficientNetLite0, reference: LabelledImages, num_classes: int, device: torch.device | str
    ):
        self._network, self._device = network, device
        self._classes = NearestClassMean(num_classes, POOLED_DIM, device)
        statistics = FeatureStatistics(POOLED_DIM, device)
        for features, labels in self._features(reference):
            statistics.update(features)
            self._classes.fit(features, labels)
        self._reference = statistics.compute()

    def scores(self, images: LabelledImages) -> dict[str, Any]:
        """`images` (their number), `frechet_efficientnet` (not FID), and `class_accuracy`: the share of images whose
        nearest class mean is that of their class."""
        statistics, hits = FeatureStatistics(POOLED_DIM, self._device), 0
        for features, labels in self._features(images):
            statistics.update(features)
            hits += int((self._classes.predict(features) == labels).sum())
        found = statistics.compute()
        return {
            "images": found.count,
            "frechet_efficientnet": frechet_distance(found, self._reference),
            "class_accuracy": hits / found.count,
        }

    @torch.inference_mode()
    def _features(self, images: LabelledImages) -> Iterable[tuple[Tensor, Tensor]]:
        for batch, labels in images:
            yield self._network.pooled(batch.to(self._device).clamp(-1, 1)), labels.to(self._device)
