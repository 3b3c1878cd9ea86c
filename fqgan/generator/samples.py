"""A folder of generated pictures that is finished once, whatever comes between, with the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from fqgan import schema
from fqgan.config import SamplingConfig
from fqgan.data.sources.npz import write_images
from fqgan.data.transforms import normalize, to_tensor
from fqgan.errors import UserError
from fqgan.files import lock, make_folder, write_text
from fqgan.tokenizer.pictures import grid_of, save_picture

MANIFEST, GRID, ARRAYS = "samples.json", "grid.png", "samples.npz"
_GRID_PICTURES = 100


@dataclass(frozen=True)
class SampleSettings:
    """What decides the bytes of the pictures."""

    generator: str
    """Fingerprint (`fqgan.tokenizer.fingerprint`) of its weights."""
    tokenizer: str
    """Fingerprint of the tokenizer that decodes."""
    classes: tuple[int, ...]
    """Picture i is of class i modulo their number."""
    num: int
    """Pictures."""
    seed: int
    batch: int
    """Pictures that are made together: their last bits depend on it, so interruptions never split a batch."""
    precision: str
    device: str
    sampling: SamplingConfig

    @property
    def batches(self) -> list[range]:
        """The pictures that are made together."""
        return [range(i, min(i + self.batch, self.num)) for i in range(0, self.num, self.batch)]

    def labels(self, pictures: Sequence[int]) -> list[int]:
        """Classes of some pictures: one after the other, round and round."""
        return [self.classes[i % len(self.classes)] for i in pictures]


class SampleFolder:
    """`000000.png`, `000001.png`, ..., and in the end `grid.png`, on request `samples.npz`, and `samples.json`.

    One rank calls `begin`, `finish` and `close`, any rank writes pictures (`path`).

    Args:
        names: of the generator's classes; may be empty.
        source: where the generator comes from; only told, not compared.
    """

    def __init__(self, folder: Path, settings: SampleSettings, names: Sequence[str], source: str):
        self.folder, self.settings, self.names, self.source = folder, settings, names, source
        self._lock: IO[str] | None = None

    def path(self, picture: int) -> Path:
        """Of one picture."""
        return self.folder / f"{picture:06d}.png"

    def begin(self) -> list[range]:
        """Take the lock; returns the batches that are not all there.

        Raises:
            UserError: other settings' pictures or other files are there, or another process is at it.
        """
        manifest, lock_file = self.folder / MANIFEST, self.folder / ".lock"
        if manifest.exists():
            content = schema.load_json(manifest)
            found = schema.from_dict(SampleSettings, content.get("settings", {}), str(manifest))
            if changed := schema.diff(found, self.settings):
                told = ", ".join(f"{key}: {before!r} -> {after!r}" for key, (before, after) in changed.items())
                raise UserError(f"{self.folder} holds pictures of other settings ({told}): choose another folder")
        elif self.folder.is_dir() and any(path != lock_file for path in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds something else than generated pictures: choose another folder")
        make_folder(self.folder)
        try:
            self._lock = lock(lock_file)
        except BlockingIOError:
            raise UserError(f"another process is generating into {self.folder}: wait for it") from None
        for stale in self.folder.glob(".*.writing"):
            stale.unlink()
        if not manifest.exists():
            self._record(complete=False)
        return [batch for batch in self.settings.batches if not all(self.path(i).exists() for i in batch)]

    def finish(self, arrays: bool) -> list[Path]:
        """The grid, ADM's .npz if asked for, and the manifest; returns the files."""
        columns = len(self.settings.classes)
        if columns == 1 or columns > _GRID_PICTURES**0.5:
            columns = math.ceil(min(self.settings.num, _GRID_PICTURES) ** 0.5)
        shown = min(self.settings.num, _GRID_PICTURES // columns * columns)
        pictures = torch.stack([normalize(to_tensor(self._read(i))) for i in range(shown)])
        blank = pictures.new_ones((-shown % columns, *pictures.shape[1:]))
        save_picture(grid_of(list(torch.cat([pictures, blank]).split(columns))), self.folder / GRID)
        written = [self.folder / GRID]
        if arrays:
            self._write_arrays(self.folder / ARRAYS)
            written.append(self.folder / ARRAYS)
        self._record(complete=True)
        return [*written, self.folder / MANIFEST]

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            (self.folder / ".lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _record(self, complete: bool) -> None:
        labels = self.settings.labels(range(self.settings.num))
        content = {
            "format_version": schema.FORMAT_VERSION,
            "complete": complete,
            "source": self.source,
            "settings": schema.to_dict(self.settings),
            "class_names": {str(label): self.names[label] for label in self.settings.classes if self.names},
            "pictures": [{"file": self.path(i).name, "label": label} for i, label in enumerate(labels)],
        }
        write_text(self.folder / MANIFEST, json.dumps(content, indent=1) + "\n")

    def _read(self, picture: int) -> Image.Image:
        with Image.open(self.path(picture)) as image:
            return image.convert("RGB")

    def _write_arrays(self, path: Path) -> None:
        """`arr_0` (n, H, W, 3) uint8 and `arr_1` (n,) int64, as ADM's evaluator reads them, one picture at a time."""
        width, height = self._read(0).size
        pictures = range(self.settings.num)
        labels = np.array(self.settings.labels(pictures), dtype=np.int64)
        write_images(path, (np.asarray(self._read(i)) for i in pictures), (len(pictures), height, width, 3), labels)
