"""What codes tell of each other, in bits: entropy, mutual information above chance, neighbours and factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor


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
