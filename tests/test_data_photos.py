"""The packaged photographs: balanced, deterministic, and no pixel on both sides."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from fqgan.base.errors import UserError
from fqgan.data.sources import photos
from fqgan.data.sources.photos import CROP, PHOTOS, PhotoSource, crop_boxes


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.name)
def test_no_pixel_in_both_splits(photo: photos.Photo) -> None:
    width, height = photos._load(photo).size
    used = {split: np.zeros((height, width), bool) for split in ("train", "validation")}
    for split, mask in used.items():
        boxes = crop_boxes(photo, split)
        assert len(set(boxes)) == len(boxes)
        for left, top, right, bottom in boxes:
            assert (right - left, bottom - top) == (CROP, CROP)
            assert (left >= 0, top >= 0, right <= width, bottom <= height) == (True,) * 4
            mask[top:bottom, left:right] = True
    assert not (used["train"] & used["validation"]).any()


def test_classes_are_balanced() -> None:
    for split, count in (("train", photos.TRAIN_CROPS), ("validation", photos.VALIDATION_CROPS)):
        source = PhotoSource(split)
        assert len(source.classes) == 10
        assert np.bincount(source.labels).tolist() == [count] * 10
        assert source.blocks == [len(source)]


def test_crops_are_colour_pictures_with_content() -> None:
    source = PhotoSource("validation")
    for index in range(len(source)):
        image, label = source.read(index)
        assert (image.mode, image.size, label) == ("RGB", (CROP, CROP), source.labels[index])
        assert np.asarray(image).std() > 3, source.describe(index)


def test_same_crops_every_time() -> None:
    first, second = PhotoSource("train"), PhotoSource("train")
    assert [first.describe(i) for i in range(len(first))] == [second.describe(i) for i in range(len(second))]
    assert first.describe(0) == "data/astronaut.png at x 0, y 0"


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    photos._load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need skimage's data/astronaut\.png: run pip install 'fqgan\[offline\]'$"):
        PhotoSource()
