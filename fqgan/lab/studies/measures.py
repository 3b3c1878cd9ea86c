"""What lies in factors: how far they are apart, and what of the classes they hold. Pure functions of features and
codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
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


def entropy(codes: Tensor) -> float:
    """Entropy in bits of codes (n,), as they were counted."""
    counts = torch.unique(codes, return_counts=True)[1].double()
    share = counts / counts.sum()
    return -(share * share.log2()).sum().item()


@dataclass(frozen=True)
class Information:
    """Mutual information of two factors' codes, in bits a position."""

    counted: float
    """From the counts: H(a) + H(b) - H(a, b). It is too large, the more so the fewer positions there are."""
    chance: float
    """The same of pairs from different positions, which know nothing of each other: mean over the permutations."""
    smaller_entropy: float
    """min(H(a), H(b)): what it could be at most."""

    @property
    def corrected(self) -> float:
        """What is left of it above chance, at least 0."""
        return max(0.0, self.counted - self.chance)


def mutual_information(a: Tensor, b: Tensor, permutations: int = 3, seed: int = 0) -> Information:
    """Mutual information of codes a and b (n,) int64 of the same positions. `ValueError` for other shapes."""
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two equal shapes (n,) are needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    size = int(b.max()) + 1
    apart = entropy(a) + entropy(b)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [b[torch.randperm(len(b), generator=generator)] for _ in range(permutations)]
    chance = [apart - entropy(a * size + each) for each in shuffled]
    counted = apart - entropy(a * size + b)
    return Information(counted, sum(chance) / max(1, len(chance)), min(entropy(a), entropy(b)))


@dataclass(frozen=True)
class CodeStatistics:
    """What codes tell of each other, in bits a position, summed over the factors."""

    entropy: float
    """Of each code on its own."""
    left: float
    """Information of a code about its right neighbour of the same factor, above chance."""
    upper: float
    """The same of the code above."""
    other: float
    """Mutual information of a position's factors, above chance, summed over all pairs."""
    usage: float
    """Share of codes used, mean over the factors."""

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """Those in bits."""
        return self.entropy, self.left, self.upper, self.other


def code_statistics(codes: Tensor, codebook_sizes: Sequence[int], permutations: int = 3) -> CodeStatistics:
    """Statistics of codes (n, k, h, w) int64 of many images. Neighbours exist where the grid has them: a grid of one
    column has none to the left, and 0 bits."""
    columns = codes.unbind(1)
    found = {"left": 0.0, "upper": 0.0}
    for each in columns:
        for name, later, earlier in (
            ("left", each[:, :, 1:], each[:, :, :-1]),
            ("upper", each[:, 1:], each[:, :-1]),
        ):
            if later.numel():
                found[name] += mutual_information(later.flatten(), earlier.flatten(), permutations).corrected
    other = sum(
        mutual_information(a.flatten(), b.flatten(), permutations).corrected for a, b in combinations(columns, 2)
    )
    usage = [len(each.unique()) / size for each, size in zip(columns, codebook_sizes, strict=True)]
    return CodeStatistics(
        sum(entropy(each.flatten()) for each in columns), found["left"], found["upper"], other, sum(usage) / len(usage)
    )


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
