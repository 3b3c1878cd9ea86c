"""Frechet distance between two sets of features (Heusel et al. 2017, Eq. 6).

The formula is FID's, but a distance on other features than Inception's is not the FID and is never called so: with
the packaged EfficientNet-Lite0 it compares models of this package on one machine, not with published numbers.
Matches `torch_fidelity`'s and Heusel's scipy.linalg.sqrtm form, and stays real for rank-deficient covariances.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_rows
from fqgan.engine.devices import exact_device
from fqgan.metrics.sums import AllReduce


class Gaussian(NamedTuple):
    """Mean (d,) and covariance (d, d), float64, of `count` features."""

    mean: Tensor
    covariance: Tensor
    count: int


class FeatureStatistics:
    """Streaming mean and covariance of features, in float64.

    Batches are merged by the update of Chan, Golub and LeVeque (1983) on centred sums, so that a mean that is large
    against the deviation costs no precision.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count, device = 0, exact_device(device)
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: Numbers) -> None:
        """Add features (n, d), real numbers of any type. `UserError` for other shapes."""
        features = as_rows(features, "features", len(self.mean), self.mean.device)
        if len(features):
            features = features.double()
            mean = features.mean(0)
            centred = features - mean
            self._add(len(features), mean, centred.T @ centred)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter + shift.outer(shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def compute(self, all_reduce: AllReduce | None = None) -> Gaussian:
        """Mean and unbiased covariance, over all ranks with `all_reduce`. Below two features it raises `UserError`."""
        count, mean, scatter = self.count, self.mean, self.scatter
        if all_reduce:
            # sums over ranks, still centred: first the common mean, then each rank's scatter about it
            sums = all_reduce(torch.cat([mean * count, mean.new_tensor([count])]))
            count, mean = int(sums[-1]), sums[:-1] / sums[-1]
            shift = self.mean - mean
            scatter = all_reduce(scatter + shift.outer(shift) * self.count)
        if count < 2:
            raise UserError(f"a covariance needs at least 2 features, got {count}")
        return Gaussian(mean, scatter / (count - 1), count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)), at least 0, in the features' unit squared.

    With any roots A = R R^T and B = S S^T the trace of (A B)^(1/2) is the sum of the singular values of R^T S. They are
    real, and where a covariance is not of full rank the rest of them is zero up to round-off. So are the eigenvalues of
    A B, but their roots are not: there the order of the images would show in the eighth digit.
    Precision: 1e-10 of tr(A + B). `UserError` for unequal dimensions, and for numbers that are not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared")
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    if not (distance.isfinite() and a.covariance.isfinite().all() and b.covariance.isfinite().all()):
        raise UserError("means or covariances are not finite (NaN or infinite)")
    cross = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return max(0.0, (distance - 2 * cross).item())


def _root(covariance: Tensor) -> Tensor:
    """R (d, r) with R R^T = `covariance` (d, d): by Cholesky's method, or with one column for each eigenvalue above
    round-off where the rank r is below d."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    pivots = root.diagonal().square()
    if not failed and pivots.min() > _round_off(pivots):
        return root
    values, vectors = _eigh(covariance)
    kept = values > _round_off(values)
    return vectors[:, kept] * values[kept].sqrt()


def _eigh(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors; by numpy's LAPACK where torch's does not converge, as once for four images."""
    try:
        return torch.linalg.eigh(covariance)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        values, vectors = np.linalg.eigh(covariance.cpu().numpy())
        return torch.from_numpy(values).to(covariance), torch.from_numpy(vectors).to(covariance)


def _round_off(values: Tensor) -> Tensor:
    """What numbers computed together with these may be off by."""
    return len(values) * torch.finfo(values.dtype).eps * values.max()
