"""Image sources: where pictures come from. Every source is random access and says how it is read fast."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fqgan.data.decode import decode_image
from fqgan.data.transforms import center_crop, normalize, to_tensor
from fqgan.errors import UserError
from fqgan.schema import did_you_mean

PHOTOS = "photos"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
"""What a file or folder is called -> the split it holds."""


class ImageSource(Protocol):
    """Pictures with labels, by index."""

    name: str
    """For messages."""
    classes: tuple[str, ...]
    """Class names; empty where they are unknown."""
    labels: npt.NDArray[np.int64]
    """The label of every picture; -1 where there is none."""
    blocks: list[int]
    """Lengths of the consecutive spans that are cheap to read together; a random-access source has one."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The RGB picture at its own size, and its label. `UnreadableError` where it cannot be decoded."""
        ...

    def describe(self, index: int) -> str:
        """The picture's file (and place in it), for messages."""
        ...

    def reserve(self, blocks: int) -> None:
        """Ask for memory enough that reads spread over `blocks` blocks stay cheap."""
        ...


class FolderSource:
    """Picture files below a folder, in sorted order.

    The sub-folders are the classes, as in torchvision's ImageFolder (an empty one counts, so that the labels of
    several splits agree). A folder that holds pictures itself has no classes, and every label is -1. `UserError`
    when there is no picture.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        with os.scandir(folder) as entries:
            flat = any(_is_picture(entry.name) for entry in entries)
        groups = [folder] if flat else _subfolders(folder)
        files = [_pictures_below(group) for group in groups]
        self._files = list(itertools.chain(*files))
        if not self._files:
            raise UserError(f"{name} holds no picture ({' '.join(EXTENSIONS)}) and no parquet file")
        self.classes: tuple[str, ...] = () if flat else tuple(group.name for group in groups)
        labels = [-1] if flat else range(len(groups))
        self.labels = np.repeat(np.array(labels, dtype=np.int64), [len(group) for group in files])
        self.blocks = [len(self._files)]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return decode_image(Path(self._files[index]), self._files[index]), int(self.labels[index])

    def describe(self, index: int) -> str:
        return self._files[index]

    def reserve(self, blocks: int) -> None:
        """Nothing to do: every file is read by itself."""


def open_source(spec: str, split: str = "train") -> ImageSource:
    """Open `photos` (the packaged photographs), an image folder, a parquet file, a glob of parquet files, or a folder
    of parquet files.

    `split` is "train" or "validation". It picks regions of the photographs, and one of several splits in a folder
    that holds them side by side (`train/` and `val/`, or `train-0.parquet` and `test-0.parquet`; `test` serves as
    validation where nothing else does). Otherwise it has no meaning. `UserError` for what is missing, empty or broken.
    """
    from fqgan.data.parquet import ParquetSource
    from fqgan.data.photos import PhotoSource

    if not spec:
        raise UserError("no image source is set: name photos, an image folder or parquet files")
    if spec == PHOTOS:
        return PhotoSource(split)
    path = Path(spec).expanduser()
    if path.is_dir():
        if files := sorted(file for file in path.glob("*.parquet") if not file.name.startswith(".")):
            return ParquetSource(_of_split(files, split, spec), spec)
        return FolderSource(_split_folder(path, split, spec), spec)
    files = [path] if path.exists() else sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    if not files:
        raise _missing(spec, path)
    for file in files:
        if file.suffix != ".parquet":
            raise UserError(f"{file} is neither a folder nor a .parquet file")
    return ParquetSource(files, spec)


def load_images(paths: str | Path | Iterable[str | Path], size: int = 256) -> Tensor:
    """Read one picture file or several -> (b, 3, size, size) float32 in [-1, 1], ADM centre crops.

    `UserError` for a file that is missing, unreadable, or has a shorter side below `size` pixels.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise UserError("no picture to load: the list of paths is empty")
    return normalize(torch.stack([to_tensor(center_crop(_read(file, size), size)) for file in files]))


def _read(file: Path, size: int) -> Image.Image:
    image = decode_image(file, str(file))
    if min(image.size) < size:
        raise UserError(
            f"{file} is {image.width}x{image.height} pixels, below size {size}: "
            f"load it with a size of at most {min(image.size)}, or enlarge it first"
        )
    return image


def _split_folder(folder: Path, split: str, spec: str) -> Path:
    """`folder`, or the sub-folder of the split where all its sub-folders are named after splits."""
    children = _subfolders(folder)
    if not children or any(child.name.lower() not in SPLITS for child in children):
        return folder
    return _of_split(children, split, spec)[0]


def _of_split(paths: list[Path], split: str, spec: str) -> list[Path]:
    """The paths of one split where the first words of their names tell of several, else all of them."""
    splits = {path: SPLITS.get(re.split("[^a-z]", path.name.lower())[0]) for path in paths}
    if len(set(splits.values())) < 2:
        return paths
    wanted = "test" if split == "validation" and "validation" not in splits.values() else split
    chosen = [path for path in paths if splits[path] == wanted]
    if not chosen:
        raise UserError(f"{spec} holds {', '.join(path.name for path in paths[:5])} but no {split} split: name a file")
    return chosen


def _missing(spec: str, path: Path) -> UserError:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(f"{spec} does not exist{did_you_mean(path.name, [PHOTOS, *siblings])}")


def _pictures_below(folder: Path) -> list[str]:
    # strings from os.walk: a million Path objects would take seconds and a gigabyte
    files: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(place, name) for name in sorted(names) if _is_picture(name)]
    return files


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
