"""What lies in factors: how far they are apart, and what of the classes they hold. Pure functions of features and
codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.base.errors import UserError

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the linear probe's L2 penalty, of which validation chooses one."""


def mean_squared_cosine(a: Tensor, b: Tensor) -> float:
    """Mean of cos^2 between vectors a and b (n, d), the disentanglement loss of Eq. 7; in [0, 1]. For independent
    directions in d dimensions 1/d is expected. `ValueError` for other shapes."""
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"two equal shapes (n, d) are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    return torch.nn.functional.cosine_similarity(a.double(), b.double()).square().mean().item()


def neighbour_purity(points: Array, labels: Labels, neighbours: int = 10) -> float:
    """Share of each point's nearest neighbours (Euclidean, itself left out) that are of its class, mean over the points
    (n, d) of classes (n,); in [0, 1]. `ValueError` where there are not more points than neighbours."""
    from sklearn.neighbors import NearestNeighbors

    if len(points) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {len(points)} points")
    nearest = NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(return_distance=False)
    return float((labels[nearest] == labels[:, None]).mean())


def within_share(points: Array, labels: Labels) -> float:
    """Variance within the classes over the variance of all points (n, d); in [0, 1]: 0 where every class is one point,
    1 where all classes have one mean. How compact classes are, free of scale. NaN where all points are one."""
    total = float(((points - points.mean(0)) ** 2).sum())
    classes = (points[labels == label] for label in np.unique(labels))
    within = sum(float(((group - group.mean(0)) ** 2).sum()) for group in classes)
    return within / total if total else float("nan")


@dataclass(frozen=True)
class Probe:
    """A linear classifier's accuracy on images that it was not fitted on."""

    accuracy: float
    error: float
    """Standard error, of the number of test images alone."""
    penalty: float
    """Chosen on a fifth of the training images."""


def linear_probe(points: Array, labels: Labels, test_points: Array, test_labels: Labels) -> Probe:
    """Accuracy of logistic regression on standardised features (n, d): fitted on the first set, its L2 penalty chosen
    on every fifth image of that, tested on the second. `UserError` for fewer than two classes, or fewer than five
    images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    held_out = np.arange(len(labels)) % 5 == 4
    if len(labels) < 5 or len(np.unique(labels[~held_out])) < 2:
        raise UserError(f"{len(labels)} images are too few for a probe: five, of two classes, are the least (--limit)")

    def fitted(penalty: float, x: Array, y: Labels) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000)).fit(x, y)

    scores = {
        c: fitted(c, points[~held_out], labels[~held_out]).score(points[held_out], labels[held_out]) for c in PENALTIES
    }
    best = max(scores, key=lambda c: scores[c])
    accuracy = float(fitted(best, points, labels).score(test_points, test_labels))
    return Probe(accuracy, float(np.sqrt(accuracy * (1 - accuracy) / len(test_labels))), best)
