"""What is done with trained models: what `reconstruct`, `extract`, `redraw`, `generate` and `convert` take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.files import check_file
from fqgan.base.outputs import check_output
from fqgan.config.data import PictureOptions, SourceOptions
from fqgan.config.devices import Device
from fqgan.config.ranges import at_least
from fqgan.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class TrainedTokenizer:
    """A tokenizer on disk or on the hub, and how it computes."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name; or a tokenizer of
    others: py:module:function or diffusers:folder-or-id."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the tokenizer. bf16 is about twice as fast if the hardware supports it, and changes some codes.
    Quantizers stay in float32."""


def _check_share(max_unreadable: float) -> None:
    if not 0 <= max_unreadable <= 1:
        raise UserError(f"--max-unreadable must be between 0 and 1, got {max_unreadable}")


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings(TrainedTokenizer, PictureOptions):
    """Pictures through a tokenizer and back."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE|FOLDER ...")]
    """Pictures to reconstruct: files, folders, or any other set that training reads."""
    out: Path = Path("reconstructions")
    """Folder for one PNG and one file of codes (.npz) for each picture, under its name. Pictures of a folder keep
    their sub-folders."""
    size: int = 0
    """Side of the centre crop in pixels; 0: the size that the tokenizer was trained on. With --whole: the shorter side;
    0: as it is."""
    whole: bool = False
    """Reconstruct whole pictures at their own aspect, not their centre."""
    fit: Literal["pad", "crop"] = "pad"
    """What happens to sides that are no multiple of the tokenizer's downsampling factor. pad: they are continued by
    their reflection, which is cut off after decoding. crop: they are cut."""
    tile: int = 0
    """Side of the tiles in pixels that larger pictures pass through the tokenizer in, so that memory does not grow with
    them; 0: each picture in one piece. Neighbours share a quarter, and at least four positions of the code map."""
    batch: int = 16
    """Pictures of the size that the tokenizer was trained on that pass through it together; of larger ones, as many as
    have no more pixels."""
    workers: int = 2
    """Number of loader processes."""
    max_unreadable: float = 0.01
    """Share of pictures that may be unreadable. A warning names each of them, left_out.json lists them, and the command
    goes on without. It ends if there are more (and more than ten). 0: it ends at the first one."""
    device: Device = "auto"

    def check(self) -> None:
        """Raise `UserError` where no picture is named, for numbers that make no sense, and for a folder that cannot be
        written."""
        if not self.images:
            raise UserError("name at least one picture: fqgan reconstruct CHECKPOINT PICTURE ... --out DIR")
        at_least(0, size=self.size, tile=self.tile, workers=self.workers)
        at_least(1, batch=self.batch)
        _check_share(self.max_unreadable)
        check_output(self.out, folder=True, inputs=[self.checkpoint, *self.images])


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings(TrainedTokenizer, SourceOptions):
    """A set of images into a token store."""

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
    device: Device = "auto"

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense, and for a store that cannot be written."""
        at_least(1, batch=self.batch)
        at_least(0, size=self.size, workers=self.workers)
        at_least(0, **{"crops-per-pass": self.crops_per_pass, "shard-images": self.shard_images})
        _check_share(self.max_unreadable)
        if self.crop_range and not 1 <= self.crop_range < float("inf"):
            raise UserError(f"--crop-range must be at least 1, got {self.crop_range}")
        check_output(self.out, folder=True, inputs=[self.data, self.checkpoint])


@dataclass(frozen=True, kw_only=True)
class RedrawingSettings(SamplingConfig):
    """A token store, and how much of it a generator draws again."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="GENERATOR")]
    """A generator's run folder, one of its checkpoints, an exported generator, or hf:org/name."""
    store: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """Token store of centre crops, made with the generator's tokenizer."""
    out: Path
    """Folder for the new store. The same command resumes."""
    keep: float = 0.7
    """Share of each image's positions, chosen at random, whose codes stay; the generator draws the others (sigma of
    Qiu et al. 2025)."""
    seed: int = 0
    """Seed. The image at index i of the store is drawn from the random stream (seed, i)."""
    batch: int = 16
    """Images that are drawn together."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the generator."""
    device: Device = "auto"

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """Raise `UserError` for numbers that make no sense, and for a store that cannot be written; where the
        generator's codebooks are given, for codes that cannot be drawn from them."""
        at_least(1, batch=self.batch)
        at_least(0, seed=self.seed)
        if not 0 <= self.keep < 1:
            raise UserError(f"--keep must be at least 0 and below 1, got {self.keep}")
        check_output(self.out, folder=True, inputs=[self.checkpoint, self.store])
        if codebook_sizes:
            super().check(codebook_sizes)


@dataclass(frozen=True, kw_only=True)
class Drawing(SamplingConfig):
    """Pictures of a generator, and what decides their bytes."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A generator's run folder, one of its checkpoints, an exported generator, a released file, or hf:org/name."""
    classes: str = "all"
    """Class numbers or names, separated by commas, or `all`. The pictures take these classes in turn: picture i takes
    the class at index i modulo the number of classes. `none`: pictures of no class; an unconditional generator makes no
    others."""
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
    given: Annotated[str, tyro.conf.arg(metavar="FILE.npz")] = ""
    """Codes that stay as they are, while the others are drawn: `codes` (n, k, h, w) and `mask` (n, k, h, w), true where
    a code stays; shapes that repeat, such as (1, k, 1, 1), will do. Without `mask` negative codes are drawn. The
    pictures take these codes in turn: picture i takes those at index i modulo n. Empty: all codes are drawn."""
    grid: tuple[int, ...] = ()
    """Height and width of the pictures in token positions; by default the generator's. Other grids cost quality."""
    head_rounds: int = 0
    """Rounds in which a masked head predicts the factors of a position: fewer are faster, and take the factors of a
    round for independent. 0: the generator's own (`model.head_rounds`)."""
    device: Device = "auto"

    def check(self, codebook_sizes: tuple[int, ...] = ()) -> None:
        """As of `Drawing`; and `UserError` for what is no grid, a missing file, and a folder that cannot be written."""
        super().check(codebook_sizes)
        check_grid(self.grid)
        at_least(0, **{"head-rounds": self.head_rounds})
        if self.given:
            check_file(Path(self.given))  # before a model is fetched
        check_output(self.out, folder=True, inputs=[self.checkpoint, self.tokenizer, self.given])


@dataclass(frozen=True)
class ConversionSettings:
    """A model from one form on disk to another."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A released file of FQGAN, FAR, LlamaGen or VQGAN, a run folder, a checkpoint, an export, or
    hf:org/name[@revision]."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write, or with --to released the file to write. It must not exist yet."""
    to: Literal["folder", "released"] = "folder"
    """folder: config.json, model.safetensors and a model card. released: a .pt file of the released layout."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to convert: the moving average (ema) or the raw weights. auto: the moving average if there is one. If a
    released file holds both, auto writes the moving average and keeps the raw weights in the same folder."""
    tokenizer: str = ""
    """Tokenizer that the converted generator carries, if it has none or if another copy of its own is wanted."""
    grid: tuple[int, ...] = ()
    """Height and width of a generator's token grid in positions, for a released file that does not say: 24 24 for
    LlamaGen at 384 pixels."""

    def check(self) -> None:
        """Raise `UserError` where something is in the way of what is to be written, and for what is no grid."""
        check_grid(self.grid)
        check_output(self.out, folder=self.to == "folder", option="DST", inputs=[self.source])
        if self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise UserError(f"DST {self.out} exists: choose another name")


def check_grid(grid: tuple[int, ...]) -> None:
    """`UserError` for what is neither empty nor a height and a width."""
    if len(grid) not in (0, 2):
        raise UserError(f"--grid takes a height and a width, got {len(grid)} number(s)")
