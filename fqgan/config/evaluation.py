"""How images are measured: what decides the numbers of an evaluation. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.config.data import PictureOptions, SourceOptions
from fqgan.config.ranges import at_least
from fqgan.config.verbs import Drawing, TrainedTokenizer

MADE_WITHOUT = frozenset({"workers", "cache", "npz"})
"""Settings of an evaluation that its numbers do not depend on."""


@dataclass(frozen=True, kw_only=True)
class Measuring(PictureOptions):
    """How the images of an evaluation are read, and which features are compared."""

    features: str = "efficientnet-lite0"
    """Network whose features are compared: `inception` (FID, sFID, Inception Score), `inception=FILE`,
    `efficientnet-lite0` (packaged, offline), `clip:ID_OR_FOLDER`, `dinov2:ID_OR_FOLDER`, `timm:NAME`, `timm:NAME=FILE`,
    or `classifier:RUN`, a run of `fqgan train-classifier`. All but `inception` and `classifier` take `@SIZE` for
    another input size."""
    size: int = 0
    """Side of the centre crop in pixels; 0: the size of the samples, or the size that the tokenizer was trained on."""
    limit: int = 0
    """Number of images of each set, spread evenly over the set; 0: all."""
    kept: int = 50_000
    """Largest number of images of each set, spread evenly over the set, whose features are kept for kernel distance,
    precision, recall, density and coverage. The time for these metrics grows with its square. 0: skip these metrics."""
    batch: int = 32
    """Number of images that are measured together. The results do not depend on it."""
    workers: int = 2
    """Number of loader processes of each rank."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense."""
        at_least(1, batch=self.batch)
        at_least(0, size=self.size, limit=self.limit, workers=self.workers, kept=self.kept)


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluation(Measuring, TrainedTokenizer, SourceOptions):
    """Of `fqgan evaluate tokenizer`: a tokenizer, and the images that it reconstructs."""

    data: str
    """Images: `photos` (held-out regions), `cifar10` (test split), a folder, parquet files or tars."""
    split: Literal["train", "validation"] = "validation"
    """Split of the data, if they have several."""
    perceptual: Literal["efficientnet-lite0", "lpips-vgg", "none"] = "efficientnet-lite0"
    """Perceptual distance: LPIPS, or the distance on the packaged EfficientNet's stages, which needs no download."""


@dataclass(frozen=True, kw_only=True)
class SetEvaluation(Measuring, SourceOptions):
    """Of `fqgan evaluate samples`: a set of images, and the reference that it is compared with."""

    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REFERENCE")]
    """Real images: an image folder, parquet files, tars, `photos`, `cifar10`, ADM's .npz (arr_0, or mu and sigma, or
    both), or a file that `fqgan evaluate statistics` wrote. The reference's features are cached under ~/.cache/fqgan or
    $FQGAN_CACHE."""
    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    """Images to judge: anything that can be a reference, or a folder that `fqgan generate` wrote."""
    split: Literal["train", "validation"] = "train"
    """Split of the reference, if it has several."""
    samples_split: Literal["train", "validation"] = "validation"
    """Split of the samples, if they have several."""
    cache: bool = True
    """Keep the reference's features in a cache for the next time; a hash of the content identifies them."""


@dataclass(frozen=True, kw_only=True)
class SetStatistics(Measuring, SourceOptions):
    """Of `fqgan evaluate statistics`: a set of images."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: an image folder, parquet files, tars, `photos`, `cifar10`, or ADM's .npz with arr_0."""
    split: Literal["train", "validation"] = "train"
    """Split of the data, if they have several."""


@dataclass(frozen=True, kw_only=True)
class GeneratorEvaluation(Measuring, Drawing):
    """Of `fqgan evaluate generator`: a generator, and the real images that its pictures are compared with."""

    data: str
    """Real images to compare with: anything that `fqgan evaluate samples` takes as a reference."""
    split: Literal["train", "validation"] = "train"
    """Split of the data to compare with, if they have several; ADM's protocol takes the training images."""
    num: int = 50_000
    """Number of pictures to generate."""
    labels: Literal["balanced", "uniform"] = "balanced"
    """Class of each picture. balanced: all classes in turn, again and again. uniform: a class drawn at random with the
    seed. Pictures of no class need neither."""
    samples: Path = Path()
    """Folder for the generated pictures; by default `evaluation` in the run folder. The same command resumes."""
    batch: int = 32
    """Number of pictures that are generated or measured together."""
    cache: bool = True
    """Keep the reference's features in a cache for the next time; a hash of the content identifies them."""

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """As of both; the generator's codebooks where they are known."""
        Measuring.check(self)
        Drawing.check(self, codebook_sizes)
        at_least(2, num=self.num)  # a covariance has no meaning for fewer
