"""What a tokenizer does to held-out images: pictures, codes, and how often each code occurs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.data.loader import EvaluationSet, evaluation_batches
from fqgan.data.sources import ImageSource
from fqgan.data.transforms import normalize
from fqgan.metrics.psnr import psnr
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.pictures import reconstruction_rows
from fqgan.tokenizer.validation import mean_colour

COLUMNS = 10


@dataclass(frozen=True)
class PictureRow:
    """One row of the picture grid."""

    label: str
    note: str
    images: Tensor
    """(n, 3, H, W) in [-1, 1], not clipped."""
    psnr: list[float] | None = None
    """dB of each image against the original, where that is worth saying."""


@dataclass(frozen=True)
class Evidence:
    """Pictures of n held-out images, and the code counts of all of them."""

    names: list[str]
    """What each of the n pictured images shows; empty texts where nothing is known."""
    rows: list[PictureRow]
    codes: Tensor
    """(n, k, h, w)."""
    counts: list[npt.NDArray[np.int64]]
    """Of each factor: how often each of its codes occurs in all held-out images; empty where only the pictures are
    known."""


@torch.inference_mode()
def gather(tokenizer: FactorizedTokenizer, source: ImageSource, device: torch.device, batch: int) -> Evidence:
    """Run a tokenizer over a source."""
    size = tokenizer.config.image_size
    totals = [torch.zeros(quantizer.codebook_size, dtype=torch.int64) for quantizer in tokenizer.quantizers]
    readable: list[Tensor] = []
    for raw, _, indices in evaluation_batches(source, size=size, batch=batch):
        readable.append(indices)
        codes = tokenizer.encode(normalize(raw.to(device))).cpu()
        for i, total in enumerate(totals):
            total += torch.bincount(codes[:, i].flatten(), minlength=len(total))
    indices = torch.cat(readable).numpy()
    chosen = [int(indices[i]) for i in sample_indices(source.labels[indices], len(source.classes))]
    return replace(pictured(tokenizer, source, chosen, device), counts=[total.numpy() for total in totals])


@torch.inference_mode()
def pictured(
    tokenizer: FactorizedTokenizer, source: ImageSource, chosen: Sequence[int], device: torch.device
) -> Evidence:
    """The pictures of the `chosen` images alone."""
    crops = EvaluationSet(source, tokenizer.config.image_size)
    images = normalize(torch.stack([crops[i][0] for i in chosen])).to(device)
    codes = tokenizer.encode(images)
    return Evidence(
        names=[source.classes[source.labels[i]] if source.labels[i] >= 0 else "" for i in chosen],
        rows=picture_rows(tokenizer, images, codes),
        codes=codes.cpu(),
        counts=[],
    )


def picture_rows(tokenizer: FactorizedTokenizer, images: Tensor, codes: Tensor) -> list[PictureRow]:
    """Originals, reconstructions, the baseline, and (k > 1) each factor alone (Fig. 3)."""
    patch = tokenizer.config.downsampling
    reconstruction, *alone = [row.float().cpu() for row in reconstruction_rows(tokenizer, codes)]
    images = images.cpu()
    baseline = mean_colour(images, patch)
    names = [f"{factor.name} alone" for factor in tokenizer.config.factors]
    return [
        PictureRow("original", "held out", images),
        PictureRow("reconstruction", "from the codes", reconstruction, psnr(images, reconstruction).tolist()),
        PictureRow("baseline", f"mean colour, {patch}×{patch} pixels", baseline, psnr(images, baseline).tolist()),
        *(PictureRow(name, "others set to zero", row) for name, row in zip(names, alone, strict=False)),
    ]


def sample_indices(labels: npt.NDArray[np.int64], num_classes: int) -> list[int]:
    """The middle image of each of up to `COLUMNS` evenly spaced classes; without classes, evenly spaced images."""
    groups: list[Sequence[int] | npt.NDArray[np.int64]] = [np.flatnonzero(labels == i) for i in range(num_classes)]
    groups = [group for group in groups if len(group)] or [[i] for i in range(len(labels))]
    count = min(COLUMNS, len(groups))
    chosen = [groups[i * len(groups) // count] for i in range(count)]
    return [int(group[len(group) // 2]) for group in chosen]
