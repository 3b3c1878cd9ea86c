"""What `pack` and `survey` take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.config.data import SourceOptions
from fqgan.config.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class SurveySettings(SourceOptions):
    """A look at a set of images."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Images: `photos`, `cifar10`, a folder, a list, parquet or Arrow files, tars, .zip or
    .npz."""
    split: Literal["train", "validation"] = "train"
    """Which one, where the source holds several."""
    scan: int = 1000
    """Evenly spaced pictures to look at; 0: all."""
    decode: bool = False
    """Decode these pictures. Slower, but their headers alone do not show that files are cut short."""
    size: tuple[int, ...] = (256,)
    """Pixels: counts the pictures whose shorter side is below each of these."""
    workers: int = 2
    """Reading processes."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense."""
        at_least(0, scan=self.scan, workers=self.workers)
        at_least(1, size=min(self.size, default=1))


@dataclass(frozen=True, kw_only=True)
class PackSettings(SourceOptions):
    """A set of images, resized, into parquet files."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Images: `photos`, `cifar10`, a folder, a list, parquet or Arrow files, tars, .zip or
    .npz."""
    out: Path
    """Folder for the parquet files; several splits may share one. The same command resumes."""
    split: Literal["train", "validation"] = "train"
    """Which one, where the source holds several; the files are named after it."""
    size: int = 256
    """Pixels to which a larger shorter side is reduced, with the filter of training. Nothing is enlarged."""
    crop_min: float = 0.0
    """The data.crop_min of the training to come. Its random crops resize the shorter side to up to size / crop_min
    first, so this many pixels are kept, 1.6 times as many at 0.8. 0: `size` are kept, from which such crops are
    enlarged, a little less sharp; right for validation, as centre crops are then those of the originals."""
    format: Literal["jpeg", "png", "webp-lossless"] = "jpeg"
    """Pictures that need no resizing and have this format already keep their bytes."""
    quality: int = 95
    """Of JPEG, 1 to 100; colours keep their full resolution."""
    rows_per_shard: int = 10_000
    """Pictures of a file at most."""
    shards: int = 0
    """Number of files; 0: from --rows-per-shard."""
    shuffle: bool = True
    """Mix the pictures once and for all, where the source can be read in any order (a folder). Training shuffles within
    data.window blocks of 256 rows only, which in a set sorted by class are few classes."""
    workers: int = 4
    """Processes that resize; 0: none but this one. The bytes do not depend on it."""
    max_unreadable: float = 0.01
    """Share of pictures that may be unreadable: each is named in a warning and left out; more than that (and more than
    ten) end the packing. 0: the first one does."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense, and for a folder that cannot be written."""
        at_least(1, size=self.size, quality=self.quality, **{"rows-per-shard": self.rows_per_shard})
        at_least(0, shards=self.shards, workers=self.workers)
        if self.quality > 100:
            raise UserError(f"--quality must be at most 100, got {self.quality}")
        for name, value in (("crop-min", self.crop_min), ("max-unreadable", self.max_unreadable)):
            if not 0 <= value <= 1:
                raise UserError(f"--{name} must be between 0 and 1, got {value}")
        check_output(self.out, folder=True, inputs=[self.source])
