"""What `extract` takes."""

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
class ExtractionSettings(SourceOptions):
    """A set of images into a token store."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name."""
    data: str
    """Images to encode: `photos`, `cifar10`, a folder, parquet files or tars."""
    out: Path
    """Folder for the token store. The same command resumes."""
    split: Literal["train", "validation"] = "train"
    """Split of the data, if they have several."""
    crops: Literal["center", "flip", "ten"] = "center"
    """Crops of each image. center: the centre. flip: the centre and its mirror image. ten: top left, top right, bottom
    left, bottom right and centre, then the mirror images of these five in the same order."""
    crop_range: float = 0.0
    """The shorter side is first resized to this number times the crop's size; 0: 1.1 for ten crops (the paper's),
    otherwise 1."""
    size: int = 0
    """Side of a crop in pixels; 0: the size that the tokenizer was trained on."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the tokenizer. bf16 is about twice as fast if the hardware supports it, and changes some codes.
    Quantizers stay in float32."""
    batch: int = 16
    """Number of images that a worker reads at a time. The codes do not depend on it."""
    workers: int = 2
    """Number of loader processes of each rank. The codes do not depend on it."""
    crops_per_pass: int = 0
    """Number of crops that go through the tokenizer together; 0: as many as make 131,072 pixels for each thread of a
    CPU, or 2,097,152 pixels on a GPU. The last bits of the features depend on it, so about one code in a million may,
    too."""
    shard_images: int = 0
    """Number of images in a shard. An interruption costs at most the shards under way. 0: shards of at least 1,024
    crops, and at most 1,024 shards."""
    max_unreadable: float = 0.01
    """Share of images that may be unreadable. A warning names each of them, and the store leaves it out. The extraction
    ends if there are more (and more than ten). 0: it ends at the first one."""
    verify: bool = False
    """Check the checksums of the shards that are there already, not only their sizes. Damaged shards are made again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense, and for a store that cannot be written."""
        at_least(1, batch=self.batch)
        at_least(0, size=self.size, workers=self.workers)
        at_least(0, **{"crops-per-pass": self.crops_per_pass, "shard-images": self.shard_images})
        if not 0 <= self.max_unreadable <= 1:
            raise UserError(f"--max-unreadable must be between 0 and 1, got {self.max_unreadable}")
        if self.crop_range and not 1 <= self.crop_range < float("inf"):
            raise UserError(f"--crop-range must be at least 1, got {self.crop_range}")
        check_output(self.out, folder=True, inputs=[self.data, self.checkpoint])
