"""How images are measured: what decides the numbers of an evaluation. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.config.data import PictureOptions, SourceOptions
from fqgan.config.ranges import at_least
from fqgan.config.sampling import Drawing

MADE_WITHOUT = frozenset({"workers", "cache", "npz"})
"""Settings of an evaluation that its numbers do not depend on."""


@dataclass(frozen=True, kw_only=True)
class Measuring(PictureOptions):
    """How the images of an evaluation are read, and which features are compared."""

    features: str = "efficientnet-lite0"
    """Network whose features are compared: `inception` (FID, sFID, Inception Score), `inception=FILE`,
    `efficientnet-lite0` (packaged, offline), `clip:ID_OR_FOLDER`, `dinov2:ID_OR_FOLDER`, `timm:NAME`, `timm:NAME=FILE`,
    each of these five with `@SIZE` for another input size, or `classifier:RUN` of `fqgan train-classifier`."""
    size: int = 0
    """Pixels a side of the centre crop; 0: as the samples have it, or the tokenizer was trained on."""
    limit: int = 0
    """Images of each set, evenly spread; 0: all."""
    kept: int = 50_000
    """Images of each set at most whose features are kept for kernel distance, precision, recall, density and coverage,
    evenly spread; their time grows with its square. 0: none of these."""
    batch: int = 32
    """Images at a time. The numbers do not depend on it."""
    workers: int = 2
    """Loader processes of each rank."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense."""
        at_least(1, batch=self.batch)
        at_least(0, size=self.size, limit=self.limit, workers=self.workers, kept=self.kept)


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluation(Measuring, SourceOptions):
    """Of `fqgan evaluate tokenizer`: a tokenizer, and the images that it reconstructs."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name."""
    data: str
    """Images: `photos` (held-out regions), `cifar10` (test split), a folder, parquet files or tars."""
    split: Literal["train", "validation"] = "validation"
    """Which one, where the data hold several."""
    perceptual: Literal["efficientnet-lite0", "lpips-vgg", "none"] = "efficientnet-lite0"
    """Perceptual distance: LPIPS, or the distance on the packaged EfficientNet's stages (offline)."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the tokenizer. bf16: about twice as fast where the hardware has it; some codes change. Quantizers stay in
    float32."""


@dataclass(frozen=True, kw_only=True)
class SetEvaluation(Measuring, SourceOptions):
    """Of `fqgan evaluate samples`: a set of images, and the reference that it is compared with."""

    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REFERENCE")]
    """Real images: an image folder, parquet files, tars, `photos`, `cifar10`, ADM's .npz (arr_0, or mu and sigma, or
    both), or a file of `fqgan evaluate statistics`. Its features are kept under ~/.cache/fqgan or $FQGAN_CACHE."""
    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    """The images to judge: the same, or a folder of `fqgan generate`."""
    split: Literal["train", "validation"] = "train"
    """Of the reference, where it holds several."""
    samples_split: Literal["train", "validation"] = "validation"
    """Of the samples, where they hold several."""
    cache: bool = True
    """Keep the reference's features for the next time, under a hash of its content."""


@dataclass(frozen=True, kw_only=True)
class SetStatistics(Measuring, SourceOptions):
    """Of `fqgan evaluate statistics`: a set of images."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: an image folder, parquet files, tars, `photos`, `cifar10`, or ADM's .npz with arr_0."""
    split: Literal["train", "validation"] = "train"
    """Which one, where the data hold several."""


@dataclass(frozen=True, kw_only=True)
class GeneratorEvaluation(Measuring, Drawing):
    """Of `fqgan evaluate generator`: a generator, and the real images that its pictures are compared with."""

    data: str
    """Real images to compare with: all that `fqgan evaluate samples` takes for a reference."""
    split: Literal["train", "validation"] = "train"
    """Of the data, where they hold several; ADM's protocol takes the training images."""
    num: int = 50_000
    """Pictures to generate."""
    labels: Literal["balanced", "uniform"] = "balanced"
    """balanced: the classes one after the other, round and round; uniform: each drawn at random, by the seed."""
    samples: Path = Path()
    """Folder for the pictures; by default `evaluation` in the run folder. The same command resumes."""
    batch: int = 32
    """Pictures that are generated or measured together."""
    cache: bool = True
    """Keep the reference's features for the next time, under a hash of its content."""

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """As of both; the generator's codebooks where they are known."""
        Measuring.check(self)
        Drawing.check(self, codebook_sizes)
