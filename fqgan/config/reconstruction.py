"""What `reconstruct` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.config.ranges import at_least


@dataclass(frozen=True)
class ReconstructionSettings:
    """Pictures through a tokenizer and back."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE ...")]
    """Picture files to reconstruct."""
    out: Path = Path("reconstructions")
    """Folder for one PNG and one file of codes (.npz) for each picture."""
    size: int = 0
    """Side of the centre crop in pixels; 0: the size that the tokenizer was trained on."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the tokenizer. bf16 is about twice as fast if the hardware supports it, and changes some codes.
    Quantizers stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self) -> None:
        """Raise `UserError` where no picture is named, and for a folder that cannot be written."""
        if not self.images:
            raise UserError("name at least one picture: fqgan reconstruct CHECKPOINT PICTURE ... --out DIR")
        at_least(0, size=self.size)
        check_output(self.out, folder=True, inputs=[self.checkpoint, *self.images])
