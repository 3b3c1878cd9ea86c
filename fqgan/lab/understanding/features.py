"""What a projector reads of pictures: channels of a bank, scaled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.config import ProjectorConfig
from fqgan.lab.understanding.banks import MapBank

_SMALLEST = 1e-6  # deviation of a channel that says nothing


@dataclass(frozen=True)
class ScaledFeatures:
    """What a projector reads of a set of pictures: some channels of a bank, each with mean 0 and deviation 1 over the
    pictures and positions that it is trained on, so that one rate suits all rows; or zeros in the same shape."""

    bank: MapBank
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


def scaled_features(config: ProjectorConfig, bank: MapBank, trained: MapBank) -> ScaledFeatures:
    """The features that a config names, of `bank`, scaled as those of the pictures `trained` on."""
    channels = bank.channels(config.factors)
    mean, std = _moments(trained)
    return ScaledFeatures(bank, channels, mean[channels], std[channels], config.feature == "blind")


@functools.lru_cache(maxsize=8)
def _moments_of(path: Path, written: int) -> tuple[Tensor, Tensor]:
    return _measure(np.load(path, mmap_mode="r"))


def _moments(bank: MapBank) -> tuple[Tensor, Tensor]:
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
