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
    """Values that mean black and white in pictures of more than 8 bits: `auto` finds them from a sample of the set; or
    give two numbers such as 0 4095."""
    small: Small = setting("enlarge", changeable=True)  # noqa: RUF009
    """What to do with pictures whose shorter side is below the size: enlarge them (ADM's protocol), skip them, or
    refuse the set."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions(PictureOptions):
    """How a set of images is understood."""

    label_column: str = setting("", changeable=True)
    """Column, or key of a tar's .json, that holds the labels; empty: found by its name."""
    labels: Literal["auto", "folders", "none"] = "auto"
    """Where labels come from. auto: from the data. folders: always from the folders' names, even if the folders are
    named like shards, such as 00000. none: nowhere, so that every label is -1."""
    classes: str = ""
    """File with one class name on each line, in the order of the labels. Empty: the data's own names, sorted;
    validation uses the training data's names."""

    @classmethod
    def of(cls, settings: PictureOptions) -> SourceOptions:
        """These options alone, of settings that hold more, or those of the pictures only."""
        kinds = SourceOptions if isinstance(settings, SourceOptions) else PictureOptions
        return SourceOptions(**{each.name: getattr(settings, each.name) for each in fields(kinds)})


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceOptions):
    """Where images come from and how they are cut."""

    source: str = setting("", changeable=True)
    """The training images: `photos` (the packaged photographs); `cifar10` or `cifar100` (as torchvision stores them);
    an image folder, a list of paths (.csv .tsv .jsonl .txt), parquet or Arrow files, WebDataset tars, a .zip or .npz,
    each as a file, a folder, a glob or a range such as `train-{0000..0099}.tar`; parquet files and tars at s3://, gs://
    or https://; or `hf:datasets/org/name[@revision][:config]`."""
    validation: str = setting("", changeable=True)
    """The validation images, named as the source is. Empty: the held-out regions of `photos`, the test split of CIFAR,
    and for other sources no validation."""
    crop_min: float = 0.8
    """Smallest random crop (ADM's), as a fraction of the resized shorter side."""
    crop_max: float = 1.0
    """Largest random crop (ADM's), as a fraction of the resized shorter side. If smallest and largest are both 1,
    images are cropped at the centre."""
    flip: bool = True
    """Mirror half of the images, chosen at random."""
    turn: bool = False
    """Turn images by a random multiple of 90 degrees. Suits pictures without an upright side, and very small sets."""
    jitter: float = setting(0.0, below=1)
    """Largest share by which contrast and the gains of the colour channels change at random. Suits very small sets."""
    max_unreadable: float = setting(0.01, below=1, changeable=True)
    """Share of pictures that may be unreadable. A warning names each of them, and another picture takes its place. The
    run ends if there are more (and more than ten). 0: the run ends at the first one."""
    workers: int = setting(4, most=2**10, changeable=True)
    """Number of loader processes of each rank; 0: the training process loads the pictures itself."""
    window: int = setting(16, least=1, most=2**16)
    """Number of blocks of a sequential source (row groups, spans of a tar) that are shuffled together, summed over all
    lanes."""
    lanes: int = setting(1, least=1, most=2**16)
    """Number of lanes in the sample order. If it is a multiple of the number of ranks, each rank reads only its own
    blocks, which spares shared storage. The order depends on the number of lanes, but not on the number of ranks. 1:
    all ranks read all blocks."""

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
