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
    """Picture files."""
    out: Path = Path("reconstructions")
    """Folder for a PNG and the codes (.npz) of each picture."""
    size: int = 0
    """Pixels a side of the centre crop; 0: the size that the tokenizer was trained on."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: about twice as fast where the hardware has it; some codes change. Quantizers stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self) -> None:
        """Raise `UserError` where no picture is named, and for a folder that cannot be written."""
        if not self.images:
            raise UserError("name at least one picture: fqgan reconstruct CHECKPOINT PICTURE ... --out DIR")
        at_least(0, size=self.size)
        check_output(self.out, folder=True, inputs=[self.checkpoint, *self.images])
