"""A made-up source of random pictures, and training batches of it."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from fqgan.base.errors import UnreadableError, UserError
from fqgan.config import DataConfig
from fqgan.data.loader import training_batches
from fqgan.data.sources import Findings, ImageSource


class Noise(ImageSource):
    """Random pictures; the index is the label. Pictures of the indices in `broken` and `unreadable` raise."""

    def __init__(
        self, blocks: list[int], side: int = 40, broken: Collection[int] = (), unreadable: Collection[int] = ()
    ) -> None:
        self.name = "noise"
        self.findings = Findings("noise")
        self.blocks = blocks
        self.labels = np.arange(sum(blocks))
        self.side = side
        self.broken = broken
        self.unreadable = unreadable

    def read(self, index: int) -> tuple[Image.Image, int]:
        if index in self.broken:
            raise UserError(f"{self.describe(index)} is broken")
        if index in self.unreadable:
            raise UnreadableError(f"{self.describe(index)} is unreadable")
        pixels = np.random.default_rng(index).integers(0, 256, (self.side, self.side + 10, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index

    def describe(self, index: int) -> str:
        return f"noise {index}"

    def reserve(self, blocks: int) -> None:
        pass


def batches(source: Any, steps: int, config: DataConfig | None = None, **options: Any) -> list[Any]:
    """The micro-batches of `steps` optimizer steps of 12 images."""
    arguments = {"size": 32, "seed": 3, "batch": 12, "micro_batch": 12, "rank": 0, "world": 1, "start_step": 0}
    arguments |= options
    stream = training_batches(source, config or DataConfig(workers=0, window=2), **arguments)
    return list(islice(stream, steps * 12 // (arguments["micro_batch"] * arguments["world"])))
