"""Maps of pictures in files, made once: all networks before the projector are frozen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import check_file, reading, write_text, writing
from fqgan.base.folder import ResumableFolder
from fqgan.base.progress import image_bar
from fqgan.data.loader import EvaluationSet
from fqgan.data.sources import ImageSource
from fqgan.data.transforms import normalize
from fqgan.data.workers import load
from fqgan.lab.understanding.maps import MapReader

SAVED_EVERY = 1024
"""Pictures that an interruption costs, about, at most."""
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MapBank:
    """The maps of a set of pictures, in a file."""

    values: Rows
    """(n, positions, channels), mapped into memory: positions in raster order, the factors' channels side by side."""
    dims: tuple[int, ...]
    """Channels of each factor."""

    def channels(self, factors: Sequence[int] = ()) -> list[int]:
        """Those of some factors, of all if none is named. `UserError` for an unknown one."""
        ends = np.cumsum(self.dims)
        for factor in factors:
            if not 0 <= factor < len(self.dims):
                raise UserError(f"there is no factor {factor}: the tokenizer has factors 0 to {len(self.dims) - 1}")
        return [c for i in factors or range(len(self.dims)) for c in range(ends[i] - self.dims[i], ends[i])]


class BankFolder:
    """`NAME.npy` of each bank, and `NAME.json`: all that its maps depend on.

    A bank in the making is `NAME.part.npy`, and its record says how many pictures are `done`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._work = ResumableFolder(folder, kind="folder of features", known=lambda: any(folder.glob("*.json")))

    def fill(
        self,
        name: str,
        reader: MapReader,
        source: ImageSource,
        content: dict[str, Any],
        *,
        device: torch.device | str,
        batch: int,
        workers: int,
    ) -> None:
        """Write the maps of a source's pictures, or those that are missing after an interruption.

        Args:
            content: fingerprint of the pictures.
            batch: pictures at a time.

        Raises:
            UserError: the bank is of other pictures or settings, or another process is at it; a picture is missing,
                cannot be read, or is too small; the network is damaged.
        """
        settings = {**reader.settings, "content": content}
        if self._done(name, settings, len(source)) == len(source):
            return
        self._work.take()
        try:
            done = self._done(name, settings, len(source))  # another process may have been at it until now
            if done < len(source):
                rows = read_maps(reader, source, done, device=device, batch=batch, workers=workers)
                self._write(name, settings, rows, len(source), done)
        finally:
            self._work.release(finished=True)

    def settings(self, name: str) -> dict[str, Any]:
        """What a finished bank depends on, and its `dims`. `UserError` where it is missing or broken."""
        return schema.load_json(self._record(name))

    def open(self, name: str) -> MapBank:
        """A finished bank. `UserError` where it is missing or broken."""
        file = self._file(name)
        dims = schema.entry(
            self.settings(name), "dims", list, self._record(name), lambda dims: all(map(schema.is_number, dims))
        )
        check_file(file)
        try:
            return MapBank(np.load(file, mmap_mode="r"), tuple(dims))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): delete it, and start again") from None

    def _done(self, name: str, settings: dict[str, Any], pictures: int) -> int:
        """How many pictures' maps are there; `UserError` where they are of other settings than these."""
        if not self._record(name).exists():
            return 0
        found = self.settings(name)
        done = schema.entry(found, "done", int, self._record(name), default=pictures)
        if not done or not (self._part(name) if "done" in found else self._file(name)).exists():
            return 0
        before = {key: value for key, value in found.items() if key not in ("dims", "done")}
        self._work.changed({name: before}, {name: settings})
        return done

    def _write(
        self, name: str, settings: dict[str, Any], batches: Iterator[list[Rows]], pictures: int, done: int
    ) -> None:
        part, values, saved = self._part(name), None, done
        if done:
            with reading(part, "features"):
                values = np.load(part, mmap_mode="r+")
        with writing(part), image_bar(f"{name} features", pictures, done) as advance:
            for maps in batches:
                rows = np.concatenate(maps, 2)
                settings = {**settings, "dims": [each.shape[2] for each in maps]}
                if values is None:
                    self._save(name, {**settings, "done": 0})
                    shape = (pictures, *rows.shape[1:])
                    values = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
                values[done : done + len(rows)] = rows
                done += len(rows)
                if saved + SAVED_EVERY <= done < pictures:
                    values.flush()
                    self._save(name, {**settings, "done": done})
                    saved = done
                advance(len(rows))
            assert values is not None, "a source has pictures"
            values.flush()
            part.replace(self._file(name))
        self._save(name, settings)

    def _save(self, name: str, record: dict[str, Any]) -> None:
        write_text(self._record(name), json.dumps(record) + "\n")

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.part.npy"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@torch.inference_mode()
def read_maps(
    reader: MapReader, source: ImageSource, start: int = 0, *, device: torch.device | str, batch: int, workers: int
) -> Iterator[list[Rows]]:
    """Maps of a source's pictures from `start` on, in batches: one (b, positions, channels) a factor. `UserError` where
    a picture is missing, cannot be read, or is too small, and for numbers that are not finite."""
    pictures = range(start, len(source))
    keys = [list(pictures[i : i + batch]) for i in range(0, len(pictures), batch)]
    source.reserve(1)
    for raw, _, _ in load(EvaluationSet(source, reader.size, reader.small).read, keys, workers, pin_memory=False):
        maps = reader.read(normalize(raw.to(device)))
        if not all(each.isfinite().all() for each in maps):
            raise UserError(f"the {reader.kind} features of {source.name} are not finite: the model is damaged")
        yield [each.flatten(2).transpose(1, 2).float().cpu().numpy() for each in maps]
