"""The packaged photographs: ten classes of crops from pictures that ship in scikit-image and scikit-learn.

They need no network and no download. Every photograph is one class. A strip along one of its sides is kept for
validation and no training crop reaches into it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from fqgan.base.errors import UserError
from fqgan.data.decode import decode_image
from fqgan.data.sources.base import Findings, ImageSource

NAME = "photos"
CROP = 128
"""Pixels a side of every crop."""
TRAIN_CROPS = 2000
"""Training crops of a class."""
VALIDATION_CROPS = 24
"""Validation crops of a class."""
STRIDES = range(64, 1, -2)
"""Grid strides in pixels, from which the widest that gives enough crops is taken."""
BLACK = 10
"""Brightness (0..255) below which a pixel counts as black. Crops that are mostly black are dropped: they lie outside
the retina's disc or inside the astronaut's visor. The sky between the galaxies is a little brighter."""

Box = tuple[int, int, int, int]


class Photo(NamedTuple):
    """One photograph and the strip that is held out of it."""

    name: str
    package: Literal["skimage", "sklearn"]
    file: str
    side: Literal["left", "bottom"]
    """The side whose strip resembles the rest: what grows or shines at the bottom only is no held-out sample."""
    depth: int
    """Pixels of the validation strip."""


PHOTOS = (
    Photo("astronaut", "skimage", "data/astronaut.png", "bottom", 128),
    Photo("cat", "skimage", "data/chelsea.png", "left", 144),
    Photo("coffee", "skimage", "data/coffee.png", "bottom", 128),
    Photo("rocket", "skimage", "data/rocket.jpg", "left", 160),
    Photo("galaxies", "skimage", "data/hubble_deep_field.jpg", "bottom", 192),
    Photo("retina", "skimage", "data/retina.jpg", "bottom", 320),
    Photo("tissue", "skimage", "data/ihc.png", "bottom", 128),
    Photo("motorcycle", "skimage", "data/motorcycle_left.png", "bottom", 128),
    Photo("pagoda", "sklearn", "datasets/images/china.jpg", "left", 176),
    Photo("dahlia", "sklearn", "datasets/images/flower.jpg", "bottom", 128),
)


class PhotoSource(ImageSource):
    """Crops of `CROP` pixels of the packaged photographs, the same number of each class.

    `split` is "train" or "validation", `count` how many of a class, 0 for all. `UserError` where the packages are not
    installed.
    """

    def __init__(self, split: str = "train", count: int = 0) -> None:
        if split not in ("train", "validation"):
            raise UserError(f"the packaged photographs have the splits train and validation, not {split!r}")
        rule = "region of each photograph"
        self.findings = Findings("packaged photographs", split=split, split_rule=rule, labels_from="photographs")
        self.name, self.split = f"photos ({split})", split
        self.classes = tuple(photo.name for photo in PHOTOS)
        self._crops = [(label, box) for label, photo in enumerate(PHOTOS) for box in crop_boxes(photo, split, count)]
        self.labels = np.array([label for label, _ in self._crops], dtype=np.int64)
        self.blocks = [len(self._crops)]

    def read(self, index: int) -> tuple[Image.Image, int]:
        photo, box = self._crops[index]
        return _load(PHOTOS[photo]).crop(box), int(self.labels[index])

    def describe(self, index: int) -> str:
        label, (left, top, _, _) = self._crops[index]
        return f"{PHOTOS[label].file} at x {left}, y {top}"

    def names(self) -> Iterable[str]:
        return map(self.describe, range(len(self)))


def photograph(name: str) -> Image.Image:
    """The whole photograph of a class. `UserError` for another name, and where the packages are not installed."""
    for photo in PHOTOS:
        if photo.name == name:
            return _load(photo)
    raise UserError(f"there is no packaged photograph {name[:40]!r}; there are {', '.join(p.name for p in PHOTOS)}")


def crop_boxes(photo: Photo, split: str, count: int = 0) -> list[Box]:
    """The (left, top, right, bottom) of the crops of one photograph, or `count` of them, in raster order, evenly spread
    over the split's region."""
    image = _load(photo)
    black = np.asarray(image.convert("L")) < BLACK
    region = _region(photo, image.size, split)
    wanted = count or (TRAIN_CROPS if split == "train" else VALIDATION_CROPS)
    boxes: list[Box] = []
    for stride in STRIDES:
        boxes = [box for box in _grid(region, stride) if not _mostly(black, box)]
        if len(boxes) >= wanted:
            break
    count = min(wanted, len(boxes))
    return [boxes[i * len(boxes) // count] for i in range(count)]


def _region(photo: Photo, size: tuple[int, int], split: str) -> Box:
    (width, height), depth = size, photo.depth
    validation, train = {
        "left": ((0, 0, depth, height), (depth, 0, width, height)),
        "bottom": ((0, height - depth, width, height), (0, 0, width, height - depth)),
    }[photo.side]
    return train if split == "train" else validation


def _grid(region: Box, stride: int) -> list[Box]:
    left, top, right, bottom = region
    return [
        (x, y, x + CROP, y + CROP)
        for y in range(top, bottom - CROP + 1, stride)
        for x in range(left, right - CROP + 1, stride)
    ]


def _mostly(mask: np.ndarray, box: Box) -> bool:
    left, top, right, bottom = box
    return bool(mask[top:bottom, left:right].mean() > 0.5)


@functools.cache
def _load(photo: Photo) -> Image.Image:
    # found without importing the package, which takes seconds
    spec = importlib.util.find_spec(photo.package)
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / photo.file).is_file():
        raise UserError(
            f"the packaged photographs need {photo.package}'s {photo.file}: run pip install 'fqgan[offline]'"
        )
    return decode_image(folder / photo.file, photo.file)
