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
    """Images: `photos`, `cifar10`, a folder, a list, parquet or Arrow files, tars, .zip or .npz."""
    split: Literal["train", "validation"] = "train"
    """Split of the source, if it has several."""
    scan: int = 1000
    """Number of pictures to examine, spread evenly over the set; 0: all."""
    decode: bool = False
    """Also decode these pictures. This is slower, but only decoding shows that a file is truncated."""
    size: tuple[int, ...] = (256,)
    """Sizes in pixels. For each size, count the pictures whose shorter side is below it."""
    workers: int = 2
    """Number of processes that read pictures."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense."""
        at_least(0, scan=self.scan, workers=self.workers)
        at_least(1, size=min(self.size, default=1))


@dataclass(frozen=True, kw_only=True)
class PackSettings(SourceOptions):
    """A set of images, resized, into parquet files."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Images: `photos`, `cifar10`, a folder, a list, parquet or Arrow files, tars, .zip or .npz."""
    out: Path
    """Folder for the parquet files. Several splits may share one folder. The same command resumes."""
    split: Literal["train", "validation"] = "train"
    """Split of the source, if it has several. The files are named after it."""
    size: int = 256
    """Pixels to which the shorter side of larger pictures is reduced, with the filter that training uses. Smaller
    pictures keep their size."""
    crop_min: float = 0.0
    """The data.crop_min that training will use. Random crops first resize the shorter side to up to size / crop_min, so
    the files keep as many pixels: at 0.8, pictures have 1.6 times as many pixels in all. 0: keep `size` pixels. Random
    crops must then be enlarged and are a little less sharp. This suits validation, because centre crops then equal
    those of the originals."""
    format: Literal["jpeg", "png"] = "jpeg"
    """Format of the packed pictures. A picture that needs no resizing and has this format already keeps its bytes."""
    quality: int = 95
    """JPEG quality, 1 to 100; colours keep their full resolution."""
    rows_per_shard: int = 10_000
    """Largest number of pictures in one file."""
    shards: int = 0
    """Number of files; 0: computed from --rows-per-shard."""
    shuffle: bool = True
    """Shuffle the pictures once, if the source can be read in any order (a folder can). Training shuffles only within
    data.window blocks of 256 rows, and in a set that is sorted by class such blocks hold few classes."""
    workers: int = 4
    """Number of processes that resize; 0: this process resizes. The bytes of the files do not depend on it."""
    max_unreadable: float = 0.01
    """Share of pictures that may be unreadable. A warning names each of them, and the files leave it out. The packing
    ends if there are more (and more than ten). 0: it ends at the first one."""

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
