"""Precision and recall (Kynkaanniemi et al. 2019, Eq. 1-3), density and coverage (Naeem et al. 2020, Eq. 5-6).

The manifold of a set is the union of the balls around its features that reach to the k-th nearest other one. Precision
and recall count features inside of balls or on them, as the authors' and ADM's code do; density and coverage those
inside, as the authors' package `prdc`, whose four numbers these equal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_count
from fqgan.metrics.blocks import BLOCK, Advance, blocks, nothing, same_dims

K = 3
"""Nearest neighbours of ADM's evaluator and of Kynkaanniemi et al."""


def precision_recall(
    real: Numbers, fake: Numbers, k: int = K, block: int = BLOCK, advance: Advance = nothing
) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of two sets of features (n, d) and (m, d).

    Time grows with (n + m)^2 d, memory with (n + m) d only: distances are taken block by block, in float64. `advance`
    is called with the rows done, n + m + n in all. `UserError` for sets of k or fewer features, and for numbers that
    are not finite.
    """
    real, fake = same_dims(real, fake)
    k = as_count(k, "k", 1)
    radii_real = radii(real, k, block, advance)
    radii_fake = radii(fake, k, block, advance)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=real.device)
    inside = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    recalled, covered = 0, 0
    for start, rows in blocks(real, block):
        radius = radii_real[start : start + len(rows), None]
        found = torch.zeros(2, len(rows), dtype=torch.bool, device=real.device)
        for first, columns in blocks(fake, block):
            distances = squared_distances(rows, columns)
            span = slice(first, first + len(columns))
            precise[span] |= (distances <= radius).any(0)
            within = distances < radius
            inside[span] += within.sum(0)
            found[0] |= (distances <= radii_fake[None, span]).any(1)
            found[1] |= within.any(1)
        recalled += int(found[0].sum())
        covered += int(found[1].sum())
        advance(len(rows))
    return {
        "precision": precise.double().mean().item(),
        "recall": recalled / len(real),
        "density": inside.double().mean().item() / k,
        "coverage": covered / len(real),
    }


def radii(features: Tensor, k: int = K, block: int = BLOCK, advance: Advance = nothing) -> Tensor:
    """(n,) float64: squared distance of each feature (n, d) to its k-th nearest other one."""
    if len(features) <= k:
        raise UserError(f"{k} nearest neighbours need more than {k} features, got {len(features)}")
    found = []
    for start, rows in blocks(features, block):
        nearest = rows.new_full((len(rows), 0), 0)
        for first, columns in blocks(features, block):
            distances = squared_distances(rows, columns)
            own = torch.arange(start, start + len(rows), device=rows.device)
            here = (own >= first) & (own < first + len(columns))
            distances[here, own[here] - first] = torch.inf
            nearest = torch.cat([nearest, distances], 1)
            nearest = nearest.topk(min(k, nearest.shape[1]), 1, largest=False, sorted=True).values
        found.append(nearest[:, k - 1])
        advance(len(rows))
    return torch.cat(found)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, d), (m, d) float64 -> (n, m): |x|^2 + |y|^2 - 2 x y, and 0 where round-off goes below."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_(min=0)
