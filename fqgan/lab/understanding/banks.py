"""What frozen networks make of pictures: maps, made once and kept in files, and scaled as a projector reads them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import check_file, reading, write_text, writing
from fqgan.base.folder import ResumableFolder
from fqgan.base.progress import image_bar
from fqgan.config import ProjectorConfig
from fqgan.config.data import Small
from fqgan.data.loader import EvaluationSet
from fqgan.data.sources import ImageSource
from fqgan.data.transforms import normalize
from fqgan.data.workers import load
from fqgan.nets.efficientnet import load_efficientnet_lite0
from fqgan.tokenizer.model import FactorizedTokenizer

SAVED_EVERY = 1024
"""Pictures that an interruption costs, about, at most."""
Rows = npt.NDArray[np.float32]
MapKind = Literal["continuous", "discrete", "network"]
NETWORK = "efficientnet-lite0"
_SMALLEST = 1e-6  # deviation of a channel that says nothing


@dataclass(frozen=True)
class MapReader:
    """A frozen network, and the pictures that it takes."""

    kind: MapKind
    size: int
    """Pixels a side of the pictures."""
    small: Small | None
    """What becomes of smaller ones; None: as the source's options say."""
    settings: dict[str, Any]
    """All that the maps depend on, beside the pictures."""
    read: Callable[[Tensor], list[Tensor]]
    """Images (b, 3, size, size) in [-1, 1] -> maps (b, c, h, w), one a factor."""


def map_kind(config: ProjectorConfig) -> MapKind:
    """The maps that a projector reads; those whose shape a blind one has."""
    return "continuous" if config.feature == "blind" else config.feature


def tokenizer_reader(
    kind: Literal["continuous", "discrete"], tokenizer: FactorizedTokenizer, size: int = 0, small: Small = "enlarge"
) -> MapReader:
    """A tokenizer's maps, one a factor: l2-normalised features before quantization, or the codes' embeddings.

    Args:
        size: pixels a side; 0: what it was trained at. `UserError` for one that its patches do not divide.
        small: what becomes of smaller pictures; `skip` refuses them too, as every caption needs its picture.
    """
    size = size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    settings = {"kind": kind, "tokenizer": tokenizer.fingerprint(), "size": size, "small": small}

    def discrete(images: Tensor) -> list[Tensor]:
        return tokenizer.embed(tokenizer.encode(images))

    return MapReader(kind, size, small, settings, tokenizer.features if kind == "continuous" else discrete)


def network_reader(size: int = 224, device: torch.device | str = "cpu") -> MapReader:
    """The packaged EfficientNet-Lite0's last map: 320 channels at stride 32. Smaller pictures are enlarged: it is what
    the tokenizer is measured against, at the size that it was trained at."""
    network = load_efficientnet_lite0().to(device)
    settings = {"kind": "network", "network": NETWORK, "size": size, "small": "enlarge"}
    return MapReader("network", size, "enlarge", settings, lambda images: [network.stages(images)[-1]])


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


@dataclass(frozen=True)
class ScaledFeatures:
    """What a projector reads of a set of pictures: some channels of a bank, each with mean 0 and deviation 1 over the
    pictures and positions that it is trained on, so that one rate suits all rows; or zeros in the same shape."""

    bank: MapBank
    channels: list[int]
    mean: Tensor
    std: Tensor
    blind: bool = False

    def __len__(self) -> int:
        return len(self.bank.values)

    def take(self, pictures: Sequence[int]) -> Tensor:
        """(b, positions, channels) float32 of some pictures."""
        if self.blind:
            return torch.zeros(len(pictures), self.bank.values.shape[1], len(self.channels))
        rows = self.bank.values[np.asarray(pictures)]
        if self.channels != list(range(rows.shape[2])):
            rows = rows[..., self.channels]
        return (torch.from_numpy(rows) - self.mean) / self.std


def scaled_features(config: ProjectorConfig, bank: MapBank, trained: MapBank) -> ScaledFeatures:
    """The features that a config names, of `bank`, scaled as those of the pictures `trained` on."""
    channels = bank.channels(config.factors)
    values = trained.values
    if isinstance(values, np.memmap) and values.filename:
        path = Path(values.filename)
        mean, std = _moments_of(path, path.stat().st_mtime_ns)
    else:
        mean, std = _moments(values)
    return ScaledFeatures(bank, channels, mean[channels], std[channels], config.feature == "blind")


@functools.lru_cache(maxsize=8)
def _moments_of(path: Path, written: int) -> tuple[Tensor, Tensor]:
    """A file is gone through once, whatever number of rows reads it."""
    return _moments(np.load(path, mmap_mode="r"))


def _moments(values: Rows) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, in float64, without a copy of the whole."""
    count = values.shape[0] * values.shape[1]
    parts = range(0, len(values), 256)
    mean = sum(values[i : i + 256].sum((0, 1), dtype=np.float64) for i in parts) / count
    squares = sum(((values[i : i + 256] - mean) ** 2).sum((0, 1)) for i in parts) / count
    std = np.sqrt(squares)
    std = np.where(std > _SMALLEST, std, 1.0)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
