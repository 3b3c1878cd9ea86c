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
    """Images: `photos`, `cifar10`, a folder, parquet files or tars."""
    out: Path
    """Folder of the token store; the same command resumes."""
    split: Literal["train", "validation"] = "train"
    """Which one, where the data hold several."""
    crops: Literal["center", "flip", "ten"] = "center"
    """Of each image: the centre; that and its mirror image; or top left, top right, bottom left, bottom right, centre,
    and the mirror images of these five in the same order."""
    crop_range: float = 0.0
    """The shorter side is resized to this times the size first; 0: 1.1 for ten crops (the paper's), else 1."""
    size: int = 0
    """Pixels a side of a crop; 0: the size that the tokenizer was trained on."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: about twice as fast where the hardware has it; some codes change. Quantizers stay in float32."""
    batch: int = 16
    """Images that a worker reads at a time. The codes do not depend on it."""
    workers: int = 2
    """Loader processes of each rank. The codes do not depend on it."""
    crops_per_pass: int = 0
    """Crops that go through the tokenizer together; 0: 131,072 pixels of them for each thread of a CPU, 2,097,152 on a
    GPU. The last bits of features depend on it, and so may a code in a million."""
    shard_images: int = 0
    """Images of a shard, which is what a kill may cost; 0: at least 1,024 crops, and at most 1,024 shards."""
    max_unreadable: float = 0.01
    """Share of images that may be unreadable: each is named in a warning and left out; more than that (and more than
    ten) end the extraction. 0: the first one does."""
    verify: bool = False
    """Check the sums of the shards that are there already, not only their sizes; damaged ones are made again."""
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
