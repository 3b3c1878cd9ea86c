"""A folder of generated pictures that is finished once, whatever comes between, with the same bytes."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fqgan.base import schema
from fqgan.base.files import replacing
from fqgan.base.folder import ResumableFolder
from fqgan.config import SamplingConfig
from fqgan.config.ranges import setting
from fqgan.data.sources.npz import write_images
from fqgan.data.transforms import normalize, to_tensor
from fqgan.tokenizer.pictures import grid_of, save_picture

MANIFEST, GRID, ARRAYS = "samples.json", "grid.png", "samples.npz"
_GRID_PICTURES = 100


@dataclass(frozen=True)
class SampleSettings:
    """What decides the bytes of the pictures."""

    generator: str
    """Fingerprint (`fqgan.models.fingerprint`) of its weights."""
    tokenizer: str
    """Fingerprint of the tokenizer that decodes."""
    classes: tuple[int, ...]
    """Picture i is of class i modulo their number; -1: of none."""
    num: int
    """Pictures."""
    seed: int
    batch: int
    """Pictures that are made together: their last bits depend on it, so interruptions never split a batch."""
    precision: str
    device: str
    sampling: SamplingConfig
    grid: tuple[int, ...] = setting((), rare=True)
    """Height and width in token positions; empty: the generator's."""
    given: str = setting("", rare=True)
    """Fingerprint of the given codes, of which picture i has those at index i modulo their number; empty: none."""
    head_rounds: int = setting(0, rare=True)
    """Rounds of a masked head, as `GeneratorConfig.head_rounds`, which its weights don't tell."""

    def share(self, rank: int, ranks: int) -> Iterator[range]:
        """The batches of a rank: of r ranks, each takes every r-th."""
        for start in range(rank * self.batch, self.num, ranks * self.batch):
            yield range(start, min(start + self.batch, self.num))

    def labels(self, pictures: Sequence[int]) -> list[int]:
        """Classes of some pictures: one after the other, round and round."""
        return [self.classes[i % len(self.classes)] for i in pictures]


class SampleFolder:
    """`000000.png`, `000001.png`, ..., and in the end `grid.png`, on request `samples.npz`, and `samples.json`.

    One rank calls `begin`, `finish` and `close`, any rank writes pictures (`path`).

    Args:
        size: height and width of a picture in pixels.
        names: of the generator's classes; may be empty.
        source: where the generator comes from; recorded, not compared.
        option: that names the folder, for messages.
    """

    def __init__(
        self,
        folder: Path,
        settings: SampleSettings,
        size: tuple[int, int],
        names: Sequence[str],
        source: str,
        option: str = "--out",
    ):
        self.folder, self.settings, self.size, self.names, self.source = folder, settings, size, names, source
        known = (folder / MANIFEST).exists
        self._work = ResumableFolder(
            folder, kind="folder of generated pictures", option=option, known=known, beside=[MANIFEST]
        )

    def path(self, picture: int) -> Path:
        """Of one picture."""
        return self.folder / f"{picture:06d}.png"

    def begin(self) -> int:
        """Take the lock; returns how many pictures are there.

        Raises:
            UserError: other settings' pictures or other files are there, or another process is at it.
        """
        manifest = self.folder / MANIFEST
        self._work.check_own()
        if manifest.exists():
            content = schema.entry(schema.load_json(manifest), "settings", dict, manifest)
            self._work.changed(schema.from_dict(SampleSettings, content, str(manifest)), self.settings)
        self._work.take()
        if not manifest.exists():
            self._record(complete=False)
        return sum(bool(re.fullmatch(r"\d{6,}\.png", entry.name)) for entry in os.scandir(self.folder))

    def missing(self, rank: int, ranks: int, skipped: Callable[[int], None]) -> Iterator[range]:
        """A rank's batches that are not all there; `skipped` is called with the length of each of the others."""
        for batch in self.settings.share(rank, ranks):
            if self.is_whole(batch):
                skipped(len(batch))
            else:
                yield batch

    def is_whole(self, batch: range) -> bool:
        """Whether all pictures of a batch are there, of this size and undamaged. Otherwise it is made anew."""
        for picture in batch:
            try:
                with Image.open(self.path(picture)) as image:
                    if (image.format, image.mode, image.size) != ("PNG", "RGB", self.size[::-1]):
                        return False
                    image.verify()
            except (OSError, ValueError, SyntaxError):
                return False
        return True

    def finish(self, arrays: bool) -> None:
        """Write the grid, ADM's .npz if asked for, and the manifest."""
        columns = len(self.settings.classes)
        if columns == 1 or columns > _GRID_PICTURES**0.5:
            columns = math.ceil(min(self.settings.num, _GRID_PICTURES) ** 0.5)
        shown = min(self.settings.num, _GRID_PICTURES // columns * columns)
        pictures = torch.stack([normalize(to_tensor(self._read(i))) for i in range(shown)])
        blank = pictures.new_ones((-shown % columns, *pictures.shape[1:]))
        save_picture(grid_of(list(torch.cat([pictures, blank]).split(columns))), self.folder / GRID)
        if arrays:
            self._write_arrays(self.folder / ARRAYS)
        self._record(complete=True)

    def close(self) -> None:
        """Give the lock back."""
        self._work.release(finished=True)

    def _record(self, complete: bool) -> None:
        """The manifest; it lists pictures, line by line, once all are there."""
        content = {
            "format_version": schema.FORMAT_VERSION,
            "complete": complete,
            "source": self.source,
            "settings": schema.to_dict(self.settings),
            "class_names": {
                str(label): self.names[label] for label in self.settings.classes if 0 <= label < len(self.names)
            },
        }
        head = json.dumps(content, indent=1).removesuffix("\n}")
        with replacing(self.folder / MANIFEST) as temporary, temporary.open("w") as file:
            file.write(head + ',\n "pictures": [')
            for i in range(self.settings.num if complete else 0):
                row = json.dumps({"file": self.path(i).name, "label": self.settings.labels([i])[0]})
                file.write(f"{',' if i else ''}\n  {row}")
            file.write("\n ]\n}\n")

    def _read(self, picture: int) -> Image.Image:
        with Image.open(self.path(picture)) as image:
            return image.convert("RGB")

    def _write_arrays(self, path: Path) -> None:
        """`arr_0` (n, H, W, 3) uint8 and `arr_1` (n,) int64, as ADM's evaluator reads them, one picture at a time."""
        width, height = self._read(0).size
        pictures = range(self.settings.num)
        labels = np.array(self.settings.labels(pictures), dtype=np.int64)
        write_images(path, (np.asarray(self._read(i)) for i in pictures), (len(pictures), height, width, 3), labels)
