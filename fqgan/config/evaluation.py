"""How images are measured: what decides the numbers of an evaluation. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.config.data import PictureOptions, SourceOptions
from fqgan.config.ranges import at_least
from fqgan.config.verbs import Drawing, TrainedTokenizer

MADE_WITHOUT = frozenset({"workers", "cache", "npz"})
"""Settings of an evaluation that its numbers do not depend on."""
ZERO_SHOT_IMAGES = 1000
"""Images that are classified by likelihood unless a number is asked for: each costs a forward pass for every class."""


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
class CodesEvaluation(TokenizerEvaluation):
    """Of `fqgan evaluate codes`: a tokenizer, and the images whose codes are looked at and disturbed."""

    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    """Shares of the codes that are replaced, above 0, at most 1."""
    near: int = 8
    """Number of nearest codes of which one replaces a code in the second series."""
    seed: int = 0
    """Seed of what is replaced. Image i draws from the random stream (seed, i)."""
    kept: int = 0
    """As of `fqgan evaluate tokenizer`; none by default, since these metrics are taken for each share."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense."""
        super().check()
        at_least(1, near=self.near)
        at_least(0, seed=self.seed)
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"--shares must be above 0 and at most 1, got {' '.join(map(str, self.shares))}")


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


@dataclass(frozen=True, kw_only=True)
class LikelihoodEvaluation(SourceOptions):
    """Of `fqgan evaluate likelihood`: a generator, and the images whose codes it is to predict."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="GENERATOR")]
    """A generator's run folder, one of its checkpoints, an exported generator, a released file, or hf:org/name."""
    data: str
    """A token store, of which the centre crops are taken; or images, whose centre crops are encoded with the
    generator's tokenizer: `photos`, `cifar10`, a folder, parquet files or tars."""
    split: Literal["train", "validation"] = "validation"
    """Split of the images, if they have several."""
    images: int = 0
    """Number of images, spread evenly over the data; 0: all, or with --zero-shot 1,000 at most."""
    zero_shot: bool = False
    """Classify images by likelihood, too: the class under which an image's codes are most likely. Costs a forward pass
    for each image and class."""
    shown: int = 16
    """Number of images that are shown and listed as the worst, and as many as the best."""
    tokenizer: str = ""
    """Tokenizer that encodes the images; empty: the one that the generator carries. Of a token store: the one that
    decodes the pictures shown; empty: the one that the store carries."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the generator. Images are encoded in float32."""
    batch: int = 16
    """Number of images that go through the generator together, or of pairs of image and class."""
    workers: int = 2
    """Number of loader processes of each rank, for images."""
    out: Path = Path()
    """Folder for eval.json, images.csv, worst-and-best.png and map.png; by default `likelihood` in the run folder,
    or here where the generator lies in no folder."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense."""
        at_least(1, batch=self.batch, shown=self.shown)
        at_least(0, images=self.images, workers=self.workers)

    @property
    def limit(self) -> int:
        """Images that are taken at most; 0: all."""
        return self.images or (ZERO_SHOT_IMAGES if self.zero_shot else 0)
