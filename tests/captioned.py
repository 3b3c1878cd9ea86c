"""Made-up pictures with captions that say what is on them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}


def write_captioned(folder: Path, train: int, test: int, size: int = 32) -> Path:
    """`train.parquet` and `test.parquet`: squares of four colours on grey, two captions each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        rows, captions = [], []
        for i in range(count):
            colour = list(COLOURS)[i % len(COLOURS)]
            pixels = rng.integers(100, 130, (size, size, 3), dtype=np.uint8)
            pixels[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = COLOURS[colour]
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
            captions.append([f"a {colour} square on grey", f"there is a {colour} square"])
        pq.write_table(pa.table({"image": rows, "caption": captions}), folder / f"{name}.parquet")
    return folder
