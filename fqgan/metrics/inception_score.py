"""Inception Score (Salimans et al. 2016, section 4): exp of the mean KL(p(y | x) || p(y)).

As ADM's evaluator computes it: the softmax of logits without the bias, images in their order in chunks of 5,000, the
mean of the chunks' scores. `torch_fidelity` cuts ten equal chunks instead; both agree where each has 5,000 images. On
logits of another network than Inception it is a score of its own and never called Inception Score.
"""

from __future__ import annotations

import torch

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_indices, as_rows
from fqgan.metrics.sums import AllReduce, Sums

CHUNK = 5000
"""Images of a chunk in ADM's evaluator."""


class InceptionScore(Sums):
    """Streaming: each chunk needs sum p and sum p log p alone, so that neither batches nor ranks matter.

    Args:
        count: images of the set.
        num_classes: logits of an image.
    """

    def __init__(self, count: int, num_classes: int, chunk: int = CHUNK, device: torch.device | str = "cpu"):
        self._count, self._chunks, self._classes, self._chunk = count, -(-count // chunk), num_classes, chunk
        # of each chunk: sum of p, sum of p log p, images
        super().__init__(self._chunks * (num_classes + 2), torch.float64, device)

    def update(self, logits: Numbers, positions: Numbers) -> None:
        """Add logits (b, num_classes) of the images at `positions` (b,) in [0, count). `UserError` for other shapes
        and, on a CPU, other positions."""
        device, rule = self._sums.device, f"lie in [0, {self._count})"
        logits = as_rows(logits, "logits", self._classes, device)
        positions = as_indices(positions, "positions", rule, self._count, device, length=len(logits), values=False)
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        negative_entropy = (p * log_p).sum(1, keepdim=True)
        rows = torch.cat([p, negative_entropy, torch.ones_like(negative_entropy)], 1)
        self._sums.view(self._chunks, -1).index_add_(0, positions // self._chunk, rows)

    def compute(self, all_reduce: AllReduce | None = None) -> dict[str, float]:
        """`score` in [1, num_classes], the chunks' mean, and `score_std`, their standard deviation (0 for one chunk).

        Chunks without images count for nothing; without any image it raises `UserError`.
        """
        sums = self._total(all_reduce).view(self._chunks, -1)
        sums = sums[sums[:, -1] > 0]
        if not len(sums):
            raise UserError("a score of no images")
        counts = sums[:, -1]
        marginal = sums[:, : self._classes] / counts[:, None]
        divergence = sums[:, self._classes] / counts - torch.special.xlogy(marginal, marginal).sum(1)
        scores = divergence.exp()
        return {"score": scores.mean().item(), "score_std": scores.std(correction=0).item()}
