"""Two small sets of made-up pictures, and `fqgan evaluate` on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fqgan.cli import main

FULL = ("--features", "efficientnet-lite0@32", "--workers", "0")
# 40 dimensions: a Frechet distance in 1,280 takes seconds on one core
FAST = ("--features", "efficientnet-lite0:stage3@32", "--workers", "0")


def write_pictures(folder: Path, count: int, seed: int, size: int = 24, classes: int = 2) -> Path:
    rng = np.random.default_rng(seed)
    for i in range(count):
        place = folder / f"class{i % classes}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(place / f"{i:03d}.png")
    return folder


def evaluated(*argv: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, argv), "--out", "out.json"]) == 0
    return json.loads(Path("out.json").read_text())


def samples(*argv: object) -> dict[str, Any]:
    return evaluated("samples", *argv, *FAST)
