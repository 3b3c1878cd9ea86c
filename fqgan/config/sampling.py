"""What `generate` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.outputs import check_output
from fqgan.config.generator import SamplingConfig
from fqgan.config.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class Drawing(SamplingConfig):
    """Pictures of a generator, and what decides their bytes."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A generator's run folder, one of its checkpoints, an exported generator, a released file, or hf:org/name."""
    classes: str = "all"
    """Class numbers or names, separated by commas, or `all`. The pictures take these classes in turn: picture i takes
    the class at index i modulo the number of classes."""
    num: int = 64
    """Number of pictures to generate."""
    seed: int = 0
    """Seed. Picture i is drawn from the random stream (seed, i)."""
    batch: int = 16
    """Pictures that are made together; of r ranks, each takes every r-th batch."""
    npz: bool = False
    """Also write samples.npz, in the form that ADM's evaluator reads: arr_0 (n, H, W, 3) uint8, arr_1 the classes."""
    tokenizer: str = ""
    """Tokenizer that decodes the codes; empty: the one that the generator carries."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the generator. bf16 takes less than half the time if the hardware supports it. It gives other
    pictures of the same quality."""

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """Raise `UserError` for numbers that make no sense; where the generator's codebooks are given, for codes that
        cannot be drawn from them."""
        at_least(1, num=self.num, batch=self.batch)
        at_least(0, seed=self.seed)
        if codebook_sizes:
            super().check(codebook_sizes)


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(Drawing):
    """Of `fqgan generate`: pictures by class into a folder."""

    out: Path = Path("samples")
    """Folder for the pictures, a grid of the first ones and samples.json. The same command resumes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """As of `Drawing`; and `UserError` for a folder that cannot be written."""
        super().check(codebook_sizes)
        check_output(self.out, folder=True, inputs=[self.checkpoint, self.tokenizer])
