"""Features of single images, kept for the metrics that compare images with images."""

from __future__ import annotations

import torch
from torch import Tensor

from fqgan.base.inputs import Numbers, as_indices, as_rows
from fqgan.base.spread import spread_evenly
from fqgan.metrics.sums import AllReduce


class FeatureBank:
    """The features of `kept` images of a set, at most, spread evenly; every rank may add any of them, in any order.

    Rows are addressed by the image's position, and what other ranks hold is zero here: sums over ranks are exact, and
    the result does not depend on batches or ranks. Memory: kept * dim * 4 bytes.

    Args:
        count: images of the set.
        kept: how many features to keep at most; 0: none.
    """

    def __init__(self, count: int, dim: int, kept: int, device: torch.device | str = "cpu"):
        self._count, self._kept = count, min(count, kept)
        places = spread_evenly(count, self._kept) if self._kept else []
        self._places = torch.tensor(places, dtype=torch.int64, device=device)
        self._rows = torch.zeros(self._kept, dim, device=device)
        self._filled = torch.zeros(self._kept, dtype=torch.int64, device=device)

    def update(self, features: Numbers, positions: Numbers) -> None:
        """Add features (b, dim) of the images at `positions` (b,) in [0, count). Never waits for a GPU; `UserError` for
        other shapes and, on a CPU, positions."""
        if not self._kept:
            return
        device, rule = self._rows.device, f"lie in [0, {self._count})"
        features = as_rows(features, "features", self._rows.shape[1], device)
        positions = as_indices(positions, "positions", rule, self._count, device, length=len(features), values=False)
        rows = torch.searchsorted(self._places, positions).clamp(max=self._kept - 1)
        chosen = self._places[rows] == positions
        self._rows[rows[chosen]] = features[chosen].float()
        self._filled[rows[chosen]] = 1

    def compute(self, all_reduce: AllReduce | None = None) -> Tensor:
        """(n, dim) float32 in the order of the positions; images that nobody added are left out."""
        rows, filled = self._rows, self._filled
        if all_reduce:
            rows, filled = all_reduce(rows.clone()), all_reduce(filled.clone())
        return rows[filled > 0]
