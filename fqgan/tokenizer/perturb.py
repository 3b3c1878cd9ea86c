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

    def __call__(
        self, vectors: Sequence[Tensor], quantized: Sequence[Quantized], quantizers: Sequence[Quantizer]
    ) -> list[Tensor]:
        """k tensors (b, d, h, w) as they are decoded, of those that the composition passes on. Gradients pass as they
        would without changes."""
        if self.share:
            each = zip(vectors, quantized, quantizers, strict=True)
            vectors = [v + near_offset(q, quantizer, self.share, self.neighbours) for v, q, quantizer in each]
        return list(vectors)


def perturbation_at(config: LatentConfig, progress: float) -> Perturbation | None:
    """The changes at `progress` in [0, 1] of a run; None: none."""
    share = config.perturb_share * (1 - progress if config.perturb_anneal else 1)
    return Perturbation(share, config.perturb_neighbours) if share > 0 else None


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
