"""Nearest-class-mean classification of features: does an image look like its class?"""

from __future__ import annotations

import torch
from torch import Tensor

from fqgan.base.inputs import Numbers, as_indices, as_rows
from fqgan.engine.devices import exact_device


class NearestClassMean:
    """Assigns features to the class with the nearest mean (Euclidean). A classifier without training, for classes that
    no trained one knows; its accuracy on real images says how far to trust it."""

    def __init__(self, num_classes: int, dim: int, device: torch.device | str = "cpu"):
        device = exact_device(device)
        self._sums = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def fit(self, features: Numbers, labels: Numbers) -> None:
        """Add features (n, dim) of classes (n,). `UserError` for other shapes and labels."""
        features, classes = self._rows(features), len(self._counts)
        labels = as_indices(labels, "labels", f"lie in [0, {classes})", classes, features.device, length=len(features))
        self._sums.index_add_(0, labels, features.double())
        self._counts += torch.bincount(labels, minlength=len(self._counts))

    def predict(self, features: Numbers) -> Tensor:
        """Classes (n,) int64 of features (n, dim). Classes that `fit` has not seen are never chosen."""
        means = self._sums / self._counts[:, None].clamp(min=1)
        distances = torch.cdist(self._rows(features).double(), means)
        return distances.masked_fill(self._counts == 0, torch.inf).argmin(1)

    def _rows(self, features: Numbers) -> Tensor:
        return as_rows(features, "features", self._sums.shape[1], self._sums.device)
