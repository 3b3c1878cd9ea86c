"""How a codebook is used. Usage matches the paper's utilization: the share of codes that occur at least once."""

from __future__ import annotations

import math

import torch

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_indices, as_tensor
from fqgan.metrics.sums import AllReduce, Sums


class CodeUsage(Sums):
    """Counts of one factor's codes. `update` never waits for a GPU."""

    def __init__(self, codebook_size: int, device: torch.device | str = "cpu"):
        super().__init__(codebook_size, torch.int64, device)

    def update(self, codes: Numbers) -> None:
        """Add codes of any shape, whole numbers in [0, codebook_size). `UserError` for others; on a GPU, for which
        nothing waits, for those of another type only."""
        codes, size = as_tensor(codes, "codes").flatten(), len(self._sums)
        codes = as_indices(codes, "codes", f"lie in [0, {size})", size, self._sums.device, values=False)
        # not bincount, which waits for a GPU to tell the length of its result
        self._sums.scatter_add_(0, codes, torch.ones_like(codes))

    def compute(self, all_reduce: AllReduce | None = None) -> dict[str, float]:
        """`usage` (share of codes used, in [0, 1]), `perplexity` (exp of the entropy, in [1, codebook_size]),
        `bits` (entropy of a position in bits) and `positions` (codes counted). Without codes it raises `UserError`.
        """
        counts = self._total(all_reduce).cpu()
        positions = int(counts.sum())
        if not positions:
            raise UserError("code usage of no codes")
        probabilities = counts.double() / positions
        entropy = -torch.special.xlogy(probabilities, probabilities).sum().item()
        return {
            "usage": (counts > 0).double().mean().item(),
            "perplexity": math.exp(entropy),
            "bits": entropy / math.log(2),
            "positions": positions,
        }
