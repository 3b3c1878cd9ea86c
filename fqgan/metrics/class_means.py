"""Nearest-class-mean classification of features: does an image look like its class?"""

from __future__ import annotations

import torch
from torch import Tensor


class NearestClassMean:
    """Assigns features to the class with the nearest mean (Euclidean). A classifier without training, for classes that
    no trained one knows; its accuracy on real images says how far to trust it."""

    def __init__(self, num_classes: int, dim: int, device: torch.device | str = "cpu"):
        self._sums = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Add features (n, dim) of classes (n,)."""
        self._sums.index_add_(0, labels, features.double())
        self._counts += torch.bincount(labels, minlength=len(self._counts))

    def predict(self, features: Tensor) -> Tensor:
        """Classes (n,) int64 of features (n, dim). Classes that `fit` has not seen are never chosen."""
        means = self._sums / self._counts[:, None].clamp(min=1)
        distances = torch.cdist(features.double(), means)
        return distances.masked_fill(self._counts == 0, torch.inf).argmin(1)
