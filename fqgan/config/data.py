"""Where images come from, how they are understood, and how they are cut."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from fqgan.config.ranges import setting

Small = Literal["enlarge", "skip", "refuse"]


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How the pictures of a set are found and decoded, wherever one is read."""

    image_column: str = setting("", changeable=True)
    """Column that holds the pictures (parquet, Arrow) or their paths (lists); empty: found by its type and name."""
    range: tuple[str, ...] = ("auto",)
    """Values that become black and white in pictures deeper than 8 bit: `auto` (from a sample of the set), or two
    numbers such as 0 4095."""
    small: Small = setting("enlarge", changeable=True)  # noqa: RUF009
    """Pictures whose shorter side is below the size: enlarge them (ADM's protocol), skip them, or refuse the set."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions(PictureOptions):
    """How a set of images is understood."""

    label_column: str = setting("", changeable=True)
    """Column, or key of a tar's .json, that holds the labels; empty: found by its name."""
    labels: Literal["auto", "folders", "none"] = "auto"
    """Where labels come from: what the data hold; the folders' names in any case (also of folders that are named like
    shards, such as 00000); or none, so that every label is -1."""
    classes: str = ""
    """File with one class name a line: their order is the labels'. Empty: the data's own names, sorted; validation uses
    training's."""

    @classmethod
    def of(cls, settings: PictureOptions) -> SourceOptions:
        """These options alone, of settings that hold more, or those of the pictures only."""
        kinds = SourceOptions if isinstance(settings, SourceOptions) else PictureOptions
        return SourceOptions(**{each.name: getattr(settings, each.name) for each in fields(kinds)})


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceOptions):
    """Where images come from and how they are cut."""

    source: str = setting("", changeable=True)
    """`photos` (the packaged photographs), `cifar10` or `cifar100` (as torchvision keeps them); an image folder, a list
    of paths (.csv .tsv .jsonl .txt), parquet or Arrow files, WebDataset tars, a .zip or .npz: a file, a folder, a glob,
    or a range such as `train-{0000..0099}.tar`; parquet files and tars also at s3:// gs:// https://;
    `hf:datasets/org/name[@revision][:config]`."""
    validation: str = setting("", changeable=True)
    """The same for validation; empty: the held-out regions of `photos`, CIFAR's test split, else no validation."""
    crop_min: float = 0.8
    """ADM random crop: smallest crop as a fraction of the resized shorter side."""
    crop_max: float = 1.0
    """ADM random crop: largest crop as a fraction of the resized shorter side; 1 and 1: centre crop."""
    flip: bool = True
    """Mirror half of the images."""
    turn: bool = False
    """Turn images by a random multiple of 90 degrees: for pictures without an upright, and for very small sets."""
    jitter: float = setting(0.0, below=1)
    """Change contrast and the channels' gains by up to this share, at random: for very small sets."""
    max_unreadable: float = setting(0.01, below=1, changeable=True)
    """Share of pictures that may be unreadable: each is named in a warning and another takes its place; more than that
    (and more than ten) end the run. 0: the first one does."""
    workers: int = setting(4, most=2**10, changeable=True)
    """Loader processes of each rank; 0: load in the training process."""
    window: int = setting(16, least=1, most=2**16)
    """Blocks of a sequential source (row groups, spans of a tar) that are shuffled together, over all lanes."""
    lanes: int = setting(1, least=1, most=2**16)
    """Lanes of the sample order. Where it is a multiple of the ranks, every rank reads blocks of its own, which spares
    shared storage; the order depends on it, but not on the ranks. 1: all ranks read all blocks."""

    @classmethod
    def from_older(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Version 0.1 had `upscale`, a bool, and refused small pictures without it."""
        return small_of_upscale(data)


def small_of_upscale(data: dict[str, Any]) -> dict[str, Any]:
    """A config of version 0.1 with `small` instead of `upscale`."""
    data = dict(data)
    if "upscale" in data:
        data["small"] = "enlarge" if data.pop("upscale") else "refuse"
    return data
