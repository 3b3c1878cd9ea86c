"""What `edit` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.config.devices import Device
from fqgan.config.ranges import at_least
from fqgan.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class EditingSettings(SamplingConfig):
    """A picture, what of its codes is kept, and how the rest is drawn again."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="GENERATOR")]
    """A generator's run folder, one of its checkpoints, an exported generator, a released file, or hf:org/name."""
    picture: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """Picture to edit. Its centre crop, at the generator's size, is encoded."""
    keep: tuple[str, ...] = ()
    """Factors whose codes stay, by name or number; the other factors are drawn again."""
    region: str = ""
    """Region x0,y0,x1,y1 in pixels of the crop: only positions that it touches are drawn again. Empty: all."""
    mix: Path = Path()
    """Another picture, whose codes of the factors `take` replace the picture's. Without --keep and --region nothing
    else changes, and nothing is drawn."""
    take: tuple[str, ...] = ()
    """Factors that come from the picture `mix`."""
    classes: str = "auto"
    """Class to draw for, by name or number. none: no class. auto: of up to 100 classes the one under which
    the codes are likeliest; of more none."""
    num: int = 8
    """Number of pictures to draw."""
    best_of: int = 1
    """How many are drawn for each one that is kept: that under which the given codes behind the first drawn one are
    likeliest; where there are none, that whose codes are. In raster order what is drawn sees nothing of what lies
    behind it."""
    seed: int = 0
    """Seed. Picture i is drawn from the random stream (seed, i), or is the best of the streams from best-of * i on."""
    batch: int = 16
    """Pictures that are drawn together. In float32 on a CPU they do not depend on it."""
    out: Path = Path("edited")
    """Folder for the pictures, a grid that begins with the original, edit.json and the codes (.npz)."""
    tokenizer: str = ""
    """Tokenizer that encodes and decodes; empty: the one that the generator carries."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the generator."""
    device: Device = "auto"

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """Raise `UserError` for what contradicts itself; where codebooks are given, for what they cannot draw."""
        at_least(1, num=self.num, batch=self.batch, **{"best-of": self.best_of})
        at_least(0, seed=self.seed)
        if (self.mix == Path()) != (not self.take):
            raise UserError("--mix and --take belong together: another picture, and which of its factors are taken")
        if not (self.keep or self.region or self.take):
            raise UserError("say what stays: --keep FACTOR, --region x0,y0,x1,y1, or --mix PICTURE --take FACTOR")
        inputs = [self.checkpoint, self.picture, self.tokenizer, *([self.mix] if self.take else [])]
        check_output(self.out, folder=True, inputs=inputs)
        if codebook_sizes:
            super().check(codebook_sizes)

    @property
    def draws(self) -> bool:
        """Whether anything is drawn."""
        return bool(self.keep or self.region)
