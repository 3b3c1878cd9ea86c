"""Training's changes of the codes' vectors on their way to the decoder (`LatentConfig`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fqgan.config import LatentConfig
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer, as_rows


@dataclass(frozen=True)
class Perturbation:
    """Changes of one step. All draws come from torch's generator, which the trainer seeds by (seed, rank, step)."""

    share: float = 0.0
    """Of the codes that are decoded as a near one."""
    neighbours: int = 1
    """From how many nearest other codes it is drawn."""
    masked: float = 0.0
    """Of the images that are decoded from their first factors alone."""

    def __call__(
        self, vectors: Sequence[Tensor], quantized: Sequence[Quantized], quantizers: Sequence[Quantizer]
    ) -> list[Tensor]:
        """k tensors (b, d, h, w) as they are decoded, of those that the composition passes on. Gradients pass a near
        code as they would pass the chosen one."""
        if self.share:
            each = zip(vectors, quantized, quantizers, strict=True)
            vectors = [v + near_offset(q, quantizer, self.share, self.neighbours) for v, q, quantizer in each]
        return nested(vectors, self.masked) if self.masked else list(vectors)


def perturbation_at(config: LatentConfig, progress: float) -> Perturbation | None:
    """The changes at `progress` in [0, 1] of a run; None: none."""
    share = config.perturb_share * (1 - progress if config.perturb_anneal else 1)
    changes = Perturbation(max(0.0, share), config.perturb_neighbours, config.mask_share)
    return changes if changes.share or changes.masked else None


def nested(vectors: Sequence[Tensor], share: float) -> list[Tensor]:
    """k tensors (b, d, h, w), where each image with the probability `share` keeps its first n factors, n drawn evenly
    from 1 to k - 1, and has zeros in the others."""
    b, device = len(vectors[0]), vectors[0].device
    drawn = torch.randint(1, len(vectors), (b,), device=device)
    kept = torch.where(torch.rand(b, device=device) < share, drawn, len(vectors))
    return [each * (kept > i)[:, None, None, None] for i, each in enumerate(vectors)]


@torch.no_grad()
def near_offset(quantized: Quantized, quantizer: Quantizer, share: float, neighbours: int) -> Tensor:
    """(b, d, h, w) what turns the vectors of round(share * b * h * w) codes, drawn without repetition, into those of
    near codes; exactly 0 elsewhere."""
    codes = quantized.codes.flatten()
    places = torch.randperm(len(codes), device=codes.device)[: round(share * len(codes))]
    own, (b, h, w) = codes[places], quantized.codes.shape
    with torch.autocast(codes.device.type, enabled=False):
        near = quantizer.near(own, neighbours)
        before, after = (as_rows(quantizer.embed(each[None, None])) for each in (own, near))
    rows = quantized.embeddings.new_zeros(len(codes), quantizer.code_dim)
    rows[places] = (after - before).to(rows.dtype)
    return rows.view(b, h, w, -1).permute(0, 3, 1, 2)
