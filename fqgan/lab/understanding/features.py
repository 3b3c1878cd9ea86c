"""What a language model reads of pictures, computed once: all networks before the projector are frozen."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import check_file, replacing, write_text
from fqgan.config import ProjectorConfig
from fqgan.config.data import Small
from fqgan.data.loader import EvaluationSet
from fqgan.data.sources import ImageSource
from fqgan.data.transforms import normalize
from fqgan.data.workers import load
from fqgan.nets.efficientnet import load_efficientnet_lite0
from fqgan.tokenizer.model import FactorizedTokenizer

Kind = Literal["continuous", "discrete", "network"]
NETWORK = "efficientnet-lite0"
_SMALLEST = 1e-6  # deviation of a channel that says nothing


@dataclass(frozen=True)
class Reader:
    """A frozen network's map of pictures."""

    kind: Kind
    size: int
    """Pixels a side of the pictures that it takes."""
    small: Small | None
    """What becomes of smaller ones; None: as the source's options say."""
    request: dict[str, Any]
    """All that the maps depend on, beside the pictures."""
    read: Callable[[Tensor], list[Tensor]]
    """Images (b, 3, size, size) in [-1, 1] -> maps (b, c, h, w), one a factor."""


def tokenizer_reader(
    kind: Literal["continuous", "discrete"], tokenizer: FactorizedTokenizer, size: int = 0, small: Small = "enlarge"
) -> Reader:
    """A tokenizer's maps, one a factor: l2-normalised features before quantization, or the codes' embeddings.

    Args:
        size: pixels a side; 0: what it was trained at. `UserError` for one that its patches do not divide.
        small: what becomes of smaller pictures; `skip` refuses them too, as every caption needs its picture.
    """
    size = size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    request = {"kind": kind, "tokenizer": tokenizer.fingerprint(), "size": size, "small": small}

    def discrete(images: Tensor) -> list[Tensor]:
        return tokenizer.embed(tokenizer.encode(images))

    return Reader(kind, size, small, request, tokenizer.features if kind == "continuous" else discrete)


def network_reader(size: int = 224, device: torch.device | str = "cpu") -> Reader:
    """The packaged EfficientNet-Lite0's last map: 320 channels at stride 32. Smaller pictures are enlarged: it is what
    the tokenizer is measured against, at the size that it was trained at."""
    network = load_efficientnet_lite0().to(device)
    request = {"kind": "network", "network": NETWORK, "size": size, "small": "enlarge"}
    return Reader("network", size, "enlarge", request, lambda images: [network.stages(images)[-1]])


@dataclass(frozen=True)
class Bank:
    """The maps of a set of pictures, in a file."""

    values: npt.NDArray[np.float32]
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


@torch.inference_mode()
def fill(
    reader: Reader,
    source: ImageSource,
    content: dict[str, Any],
    path: Path,
    *,
    device: torch.device | str,
    batch: int,
    workers: int,
    advance: Callable[[int], None] = lambda images: None,
) -> None:
    """Write the maps of a source's pictures to `path` (.npy) and what they depend on to a JSON file beside it.

    Args:
        content: fingerprint of the pictures.

    Raises:
        UserError: a picture is missing, cannot be read, or is too small.
    """
    indices = [list(range(start, min(start + batch, len(source)))) for start in range(0, len(source), batch)]
    source.reserve(1)
    batches = load(EvaluationSet(source, reader.size, reader.small).read, indices, workers, pin_memory=False)
    values: npt.NDArray[np.float32] | None = None
    dims: list[int] = []
    path.with_suffix(".json").unlink(missing_ok=True)  # what it says of an older file is not true of this one
    with replacing(path) as temporary:
        for raw, _, places in batches:
            maps = reader.read(normalize(raw.to(device)))
            rows = torch.cat(maps, 1).flatten(2).transpose(1, 2).float().cpu().numpy()
            if values is None:
                dims = [each.shape[1] for each in maps]
                shape = (len(source), *rows.shape[1:])
                values = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            values[places.numpy()] = rows
            advance(len(rows))
        assert values is not None, "a source has pictures"
        if not np.isfinite(values).all():
            raise UserError(f"the {reader.kind} features of {source.name} are not finite: the model is damaged")
        values.flush()
    write_text(path.with_suffix(".json"), json.dumps({**reader.request, "content": content, "dims": dims}) + "\n")


def is_filled(reader: Reader, content: dict[str, Any], path: Path) -> bool:
    """Whether `fill` has written these maps of these pictures already."""
    if not path.exists() or not path.with_suffix(".json").exists():
        return False
    found = schema.load_json(path.with_suffix(".json"))
    found.pop("dims", None)
    return found == json.loads(json.dumps({**reader.request, "content": content}))


def open_bank(path: Path) -> Bank:
    """What `fill` wrote. `UserError` where it is missing or broken."""
    record = path.with_suffix(".json")
    dims = schema.entry(schema.load_json(record), "dims", list, record, lambda dims: all(map(schema.is_number, dims)))
    check_file(path)
    try:
        return Bank(np.load(path, mmap_mode="r"), tuple(dims))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and start again") from None


@dataclass(frozen=True)
class Features:
    """What a projector reads of a set of pictures: some channels of a bank, each with mean 0 and deviation 1 over the
    pictures and positions that it is trained on, so that one rate suits all rows; or zeros in the same shape."""

    bank: Bank
    channels: list[int]
    mean: Tensor
    std: Tensor
    blind: bool = False
    _all: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_all", self.channels == list(range(self.bank.values.shape[2])))

    def __len__(self) -> int:
        return len(self.bank.values)

    def take(self, pictures: Sequence[int]) -> Tensor:
        """(b, positions, channels) float32 of some pictures."""
        if self.blind:
            return torch.zeros(len(pictures), self.bank.values.shape[1], len(self.channels))
        rows = self.bank.values[np.asarray(pictures)]
        return (torch.from_numpy(rows if self._all else rows[..., self.channels]) - self.mean) / self.std


def features_of(config: ProjectorConfig, bank: Bank, trained: Bank) -> Features:
    """The features that a config names, of `bank`, scaled as those of the pictures `trained` on."""
    channels = bank.channels(config.factors)
    mean, std = _moments(trained)
    return Features(bank, channels, mean[channels], std[channels], config.feature == "blind")


def kind_of(config: ProjectorConfig) -> Kind:
    """The bank that a row reads; that whose shape the blind one has."""
    return "continuous" if config.feature == "blind" else config.feature


@functools.lru_cache(maxsize=8)
def _moments_of(path: Path, written: int) -> tuple[Tensor, Tensor]:
    return _measure(np.load(path, mmap_mode="r"))


def _moments(bank: Bank) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel; a file is gone through once, whatever number of rows reads it."""
    if not isinstance(bank.values, np.memmap) or not bank.values.filename:
        return _measure(bank.values)
    path = Path(bank.values.filename)
    return _moments_of(path, path.stat().st_mtime_ns)


def _measure(values: npt.NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, in float64, without a copy of the whole."""
    count = values.shape[0] * values.shape[1]
    parts = range(0, len(values), 256)
    mean = sum(values[i : i + 256].sum((0, 1), dtype=np.float64) for i in parts) / count
    squares = sum(((values[i : i + 256] - mean) ** 2).sum((0, 1)) for i in parts) / count
    std = np.sqrt(squares)
    std = np.where(std > _SMALLEST, std, 1.0)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)
