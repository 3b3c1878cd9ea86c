"""What tests of packing and of the survey share: pictures of many sizes, and packed sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import noise
import numpy as np
import pytest
from PIL import Image

from fqgan.data.packer import Packer
from fqgan.data.shards import PackOptions
from fqgan.data.sources import ImageSource, open_source

CLASSES = ("cat", "dog", "emu")


class Noise(noise.Noise):
    """A source that knows what it reads."""

    def names(self) -> list[str]:
        return [self.describe(i) for i in range(len(self))]


def pixels(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures of two classes out of three, of many sizes, the smallest 20 pixels."""
    for i in range(40):
        name, suffix = CLASSES[i % 2], ("png", "jpg", "webp")[i % 3]
        file = tmp_path / "pictures" / name / f"{i:02d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels(i, 20 + 3 * i, 60 - i).save(file)
    (tmp_path / "pictures" / CLASSES[2]).mkdir()
    return tmp_path / "pictures"


def packed(source: Path | ImageSource, out: Path, workers: int = 0, share: float = 0.01, **options: Any) -> ImageSource:
    opened = open_source(str(source)) if isinstance(source, Path) else source
    options = {"size": 32, "format": "png", "shuffle": False} | options
    manifest = Packer(opened, out, PackOptions(**options), workers=workers, max_unreadable=share).run()
    assert manifest.complete and not [path for path in out.rglob("*") if path.is_dir() or "writing" in path.name]
    return open_source(str(out))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}
