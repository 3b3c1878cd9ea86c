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
    """Class numbers or names, separated by commas; picture i is of the class at i modulo their number."""
    num: int = 64
    """Pictures in all."""
    seed: int = 0
    """Picture i is drawn from the random stream (seed, i)."""
    batch: int = 16
    """Pictures that are made together; of r ranks, each takes every r-th batch."""
    npz: bool = False
    """Also write samples.npz, as ADM's evaluator reads it: arr_0 (n, H, W, 3) uint8, arr_1 the classes."""
    tokenizer: str = ""
    """The tokenizer that decodes; empty: the one that the generator carries."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: less than half the time where the hardware has it; other pictures of the same kind."""

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
    """Folder for the pictures, a grid of the first of them, and samples.json; the same command resumes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """As of `Drawing`; and `UserError` for a folder that cannot be written."""
        super().check(codebook_sizes)
        check_output(self.out, folder=True, inputs=[self.checkpoint, self.tokenizer])
