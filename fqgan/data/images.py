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
CIFAR = ("cifar10", "cifar100")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
FILES = (".parquet", ".tar")
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

    def names(self) -> Iterable[str]:
        """The files or parts of files that are read, in order and without the folder that holds the data set."""
        ...

    def files(self) -> Iterable[Path]:
        """The files on disk that hold the pictures, in order; none of a source in memory."""
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
        self._folder = folder
        with os.scandir(folder) as entries:
            flat = any(_is_picture(entry.name) for entry in entries)
        groups = [folder] if flat else _subfolders(folder)
        files = [pictures_below(group) for group in groups]
        self._files = list(itertools.chain(*files))
        if not self._files:
            raise UserError(f"{name} holds no picture ({' '.join(EXTENSIONS)}), parquet file or tar")
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

    def names(self) -> Iterable[str]:
        return (file.removeprefix(f"{self._folder}/") for file in self._files)  # relpath takes seconds for a million

    def files(self) -> Iterable[Path]:
        return map(Path, self._files)

    def reserve(self, blocks: int) -> None:
        """Nothing to do: every file is read by itself."""


def open_source(spec: str, split: str = "train") -> ImageSource:
    """Open `photos` (the packaged photographs), `cifar10`, `cifar100`, an image folder, or parquet files or WebDataset
    tars: one file, a folder of them, a glob, or a range such as `train-{0000..0099}.tar`.

    `split` is "train" or "validation". It picks regions of the photographs, CIFAR's training or test pictures, and one
    of several splits in a folder that holds them side by side (`train/` and `val/`, or `train-0.tar` and `test-0.tar`;
    `test` serves as validation where nothing else does). Otherwise it has no meaning. `UserError` for what is missing,
    empty or broken.
    """
    from fqgan.data.cifar import CifarSource
    from fqgan.data.photos import PhotoSource

    if not spec:
        raise UserError("no image source is set: name photos, cifar10, an image folder, parquet files or tars")
    if spec == PHOTOS:
        return PhotoSource(split)
    if spec in CIFAR:
        return CifarSource(spec, split)
    path = Path(spec).expanduser()
    return _open_folder(path, split, spec) if path.is_dir() else _open_files(_find(path, spec), spec)


def default_validation(spec: str) -> str:
    """What validates a source where nothing else is named: itself, if it knows its splits; else nothing."""
    return spec if spec in (PHOTOS, *CIFAR) else ""


def _open_folder(folder: Path, split: str, spec: str) -> ImageSource:
    for suffix in FILES:
        if files := sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith(".")):
            return _open_files(_of_split(files, split, spec), spec)
    chosen = _split_folder(folder, split, spec)
    return FolderSource(folder, spec) if chosen == folder else _open_folder(chosen, split, spec)


def _open_files(files: list[Path], spec: str) -> ImageSource:
    from fqgan.data.parquet import ParquetSource
    from fqgan.data.tar import TarSource

    for file in files:
        if file.suffix not in FILES:
            raise UserError(f"{file} is neither a folder nor a {' or '.join(FILES)} file")
        if file.suffix != files[0].suffix:
            raise UserError(f"{spec} holds {' and '.join(FILES)} files: name those of one kind")
    return (ParquetSource if files[0].suffix == ".parquet" else TarSource)(files, spec)


def _find(path: Path, spec: str) -> list[Path]:
    """The files that a path, a glob or a range of numbers names. `UserError` where one of them is missing."""
    files: list[Path] = []
    for name in [str(path)] if path.exists() else _expand(str(path)):
        found = [Path(name)] if Path(name).exists() else sorted(map(Path, glob.glob(name, recursive=True)))
        if not found:
            raise _missing(spec if name == str(path) else name, Path(name))
        files += found
    return files


def _expand(name: str) -> list[str]:
    """`a-{08..10}` -> `a-08`, `a-09`, `a-10`, and so for several ranges."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if not match:
        return [name]
    first, last = match.groups()
    numbers = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return [rest for number in numbers for rest in _expand(name[: match.start()] + number + name[match.end() :])]


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
    """The paths of one split where the words in their names tell of several, else all of them."""
    splits = {
        path: next((SPLITS[w] for w in re.split("[^a-z]", path.name.lower()) if w in SPLITS), "") for path in paths
    }
    if len(set(splits.values())) < 2:
        return paths
    wanted = "test" if split == "validation" and "validation" not in splits.values() else split
    chosen = [path for path in paths if splits[path] == wanted]
    if not chosen:
        raise UserError(f"{spec} holds {', '.join(path.name for path in paths[:5])} but no {split} split: name a file")
    return chosen


def _missing(spec: str, path: Path) -> UserError:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return UserError(f"{spec} does not exist{did_you_mean(path.name, [PHOTOS, *CIFAR, *siblings])}")


def pictures_below(folder: Path) -> list[str]:
    """The picture files below a folder, in sorted order."""
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
