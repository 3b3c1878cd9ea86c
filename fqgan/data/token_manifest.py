"""What a token store says of itself."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy.typing as npt

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.config.data import Small, small_of_upscale
from fqgan.data.transforms import NUM_CROPS, CropKind

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
UNFINISHED = ".unfinished"
"""Sub-folder of a store in the making: its settings, and a record of each finished shard."""
SETTINGS = "settings.json"
_KIND = "fqgan token store"


@dataclass(frozen=True)
class StoreOptions:
    """What decides the codes of a store, beside its pictures."""

    tokenizer: str
    """Fingerprint."""
    codebook_sizes: tuple[int, ...]
    """One a factor."""
    grid: tuple[int, ...]
    """(h, w)."""
    image_size: int
    """Pixels a side of a crop."""
    crops: CropKind = "center"
    crop_range: float = 1.0
    """The shorter side is resized to image_size times this first."""
    small: Small = "enlarge"
    range: str = "auto"
    """`SourceOptions.range`, its words joined."""
    precision: str = "float32"
    device: str = "cpu"
    crops_per_pass: int = 1
    """Crops that go through the tokenizer together. The last bits of a convolution depend on it, and a code that is
    about as near as another one may flip."""
    images_per_shard: int = 1
    """Successive pictures of the data set behind a shard."""
    redrawn: str = ""
    """How a generator has drawn a share of the codes again (`fqgan redraw`), as JSON; empty: they are the images'."""

    @classmethod
    def from_older(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Version 0.1 had `upscale`."""
        return small_of_upscale(data)

    @property
    def num_crops(self) -> int:
        """Crops of an image."""
        return NUM_CROPS[self.crops]

    @property
    def dtype(self) -> npt.DTypeLike:
        """Of the codes."""
        return code_type(self.codebook_sizes)

    def shape(self, images: int) -> tuple[int, ...]:
        """Of the codes of some images: (images, crops, k, h*w)."""
        return (images, self.num_crops, len(self.codebook_sizes), math.prod(self.grid))


def code_type(codebook_sizes: Sequence[int]) -> str:
    """Little-endian uint16, or uint32 for codebooks of more than 65,536 codes."""
    return "<u2" if max(codebook_sizes) <= 1 << 16 else "<u4"


@dataclass(frozen=True)
class File:
    """A file of a store."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A picture that cannot be read."""

    index: int
    """Its place in the data set."""
    problem: str


@dataclass(frozen=True)
class StoreShard:
    """The codes of a range of the data set."""

    start: int
    stop: int
    images: int
    """At most stop - start: unreadable pictures are left out."""
    codes: File
    labels: File
    unreadable: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class StoreManifest:
    """What is in a store; without shards, what will be."""

    options: StoreOptions
    num_factors: int
    """k."""
    num_crops: int
    weights: str
    """Which weights encoded: `ema`, `raw`, or `exported` where an exported tokenizer does not tell."""
    source: str
    """The data set's name."""
    data: dict
    """Its fingerprint (`fqgan.data.fingerprint`)."""
    label_names: tuple[str, ...] = ()
    num_classes: int = 0
    """Label names, or one more than the largest label where labels have no names; 0 where there are no labels."""
    count: int = 0
    """Images."""
    tokenizer_files: tuple[File, ...] = ()
    shards: tuple[StoreShard, ...] = ()
    kind: str = _KIND
    understood: dict = field(default_factory=dict)
    """How the data set was understood (`ImageSource.explain`)."""

    @property
    def files(self) -> list[File]:
        """All files but the manifest."""
        return [*self.tokenizer_files, *(file for shard in self.shards for file in (shard.codes, shard.labels))]

    @property
    def unreadable(self) -> list[LeftOut]:
        """The pictures that were left out."""
        return [each for shard in self.shards for each in shard.unreadable]

    def check(self) -> None:
        """`UserError` for numbers that contradict each other, and for file names that lead out of the store."""
        options = self.options
        sizes, grid = options.codebook_sizes, options.grid
        shards = [(shard.start, shard.stop, shard.images) for shard in self.shards]
        rules = {
            "options.codebook_sizes": sizes and all(0 < size <= 2**24 for size in sizes),
            "options.grid": len(grid) == 2 and all(0 < side <= 2**16 for side in grid),
            "options.image_size": 0 < options.image_size <= 2**16,
            "options.images_per_shard": 0 < options.images_per_shard < 2**53,
            "num_factors": self.num_factors == len(sizes),
            "num_crops": self.num_crops == options.num_crops,
            "num_classes": len(self.label_names) <= self.num_classes <= 2**24,
            "data": all(isinstance(value, int | str) for value in self.data.values()),
            "shards": all(0 <= start < stop < 2**53 and 0 <= images <= stop - start for start, stop, images in shards)
            and all(before[1] == after[0] for before, after in itertools.pairwise(shards)),
            "count": self.count == sum(images for _, _, images in shards),
            "files": all(map(_is_whole, self.files)),
        }
        if bad := next((name for name, holds in rules.items() if not holds), ""):
            raise UserError(f"{bad} makes no sense: the file was changed, or is damaged")


def is_manifest(content: dict[str, Any]) -> bool:
    """Whether a JSON object is a token store's manifest, by its own word."""
    return content.get("kind") == _KIND


def parse_manifest(content: dict[str, Any], file: Any) -> StoreManifest:
    """A manifest of a JSON object read from `file`; `UserError` where it is of something else or makes no sense."""
    if not is_manifest(content):
        raise UserError(f"{file} is no token store's manifest: fqgan extract did not write it")
    manifest = schema.from_dict(StoreManifest, content, str(file))
    try:
        manifest.check()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return manifest


def _is_whole(file: File) -> bool:
    name = PurePosixPath(file.name)
    inside = not name.is_absolute() and ".." not in name.parts and "\0" not in file.name and len(name.parts) in (1, 2)
    return inside and 0 <= file.bytes < 2**63 and bool(re.fullmatch("[0-9a-f]{64}", file.sha256))
