"""What tests of extraction share: pictures of three classes, the command line, and the bytes of a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("cat", "dog", "emu")


def write_picture(path: Path, seed: int, width: int = 44, height: int = 40) -> None:
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = np.stack([np.sin((2 + seed) * x + c) + np.cos((1 + seed) * y - c) for c in range(3)], -1)
    noise = np.random.default_rng(seed).normal(0, 30, waves.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((128 + 50 * waves + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Fifteen pictures of three classes."""
    for i in range(15):
        write_picture(tmp_path / "data" / CLASSES[i % 3] / f"{i}.png", i, 40 + i, 52 - i)
    return tmp_path / "data"


@pytest.fixture
def command(data: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Shards of four images; the store's folder comes last."""
    monkeypatch.chdir(data.parent)
    return ("extract", "exported", "--data", "data", "--shard-images", "4", "--workers", "0", "--out")


def contents(folder: Path | str) -> dict[str, bytes]:
    """All files, hidden ones too."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
