"""Batches for training, resumable at any step, and for evaluation."""

from __future__ import annotations

import atexit
import itertools
import signal
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fqgan.config import DataConfig
from fqgan.data.images import ImageSource
from fqgan.data.order import SampleStream
from fqgan.data.transforms import center_crop, flip, random_crop, to_tensor
from fqgan.errors import UserError

# Keeps this use of (seed, epoch, index) apart from others; not 0, as SeedSequence pads short keys with zeros.
_AUGMENTATION_TAG = 0xA06

T = TypeVar("T")


class Batches(Iterator[T]):
    """Iterator over batches. `close` ends its worker processes, as does the end of the last reference to it."""

    def __init__(self, batches: Iterator[T | UserError]) -> None:
        self._batches = batches
        _open_batches.add(self)

    def __next__(self) -> T:
        batch = next(self._batches)
        if isinstance(batch, UserError):
            self.close()
            raise batch
        return batch

    def close(self) -> None:
        self._batches = iter(())  # drops the loader's iterator, which ends the workers


_open_batches: weakref.WeakSet[Batches[Any]] = weakref.WeakSet()


class TrainingSet(Dataset[tuple[Tensor, int]]):
    """Augmented training images by (epoch, index): uint8 (3, size, size) and label.

    Crop and flip depend on (seed, epoch, index) alone, so that any rank and any worker makes the same image.
    `UserError` for a picture that cannot be read or is smaller than `size` without `config.upscale`.
    """

    def __init__(self, source: ImageSource, config: DataConfig, size: int, seed: int) -> None:
        source.reserve(config.window)
        self.source = source
        self.config = config
        self.size = size
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = _read(self.source, index, self.size, self.config.upscale)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch, index, _AUGMENTATION_TAG])))
        return to_tensor(self._augment(image, rng)), label

    def _augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.config.crop_min == self.config.crop_max == 1:
            image = center_crop(image, self.size)
        else:
            image = random_crop(image, self.size, rng, self.config.crop_min, self.config.crop_max)
        return flip(image) if self.config.flip and rng.random() < 0.5 else image


class EvaluationSet(Dataset[tuple[Tensor, int, int]]):
    """Centre crops by index: uint8 (3, size, size), label and the index itself. `UserError` as `TrainingSet`."""

    def __init__(self, source: ImageSource, size: int, upscale: bool) -> None:
        self.source = source
        self.size = size
        self.upscale = upscale

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label = _read(self.source, index, self.size, self.upscale)
        return to_tensor(center_crop(image, self.size)), label, index


def training_batches(
    source: ImageSource,
    config: DataConfig,
    *,
    size: int,
    seed: int,
    batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    start_step: int,
    pin_memory: bool = False,
) -> Batches[tuple[Tensor, Tensor]]:
    """This rank's micro-batches from optimizer step `start_step` on, without end: uint8 images
    (micro_batch, 3, size, size) and int64 labels (micro_batch,).

    Step s covers the positions [s * batch, (s + 1) * batch) of the sample stream, and micro-batch m of rank r in it
    those from s * batch + (m * world + r) * micro_batch: the union over the ranks depends neither on their number nor
    on the micro-batch. `UserError` when `batch` is no multiple of micro_batch * world, and as `TrainingSet`.
    """
    if batch % (micro_batch * world):
        raise UserError(f"batch {batch} is no multiple of micro_batch {micro_batch} times {world} ranks")
    stream = SampleStream(source.blocks, seed, config.window)
    keys = (
        stream.take(start, start + micro_batch)
        for step in itertools.count(start_step)
        for start in range(step * batch + rank * micro_batch, (step + 1) * batch, world * micro_batch)
    )
    return _load(TrainingSet(source, config, size, seed), keys, config.workers, pin_memory)


def evaluation_batches(
    source: ImageSource,
    *,
    size: int,
    batch: int,
    limit: int = 0,
    workers: int = 0,
    upscale: bool = False,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Batches[tuple[Tensor, Tensor, Tensor]]:
    """Every picture once and in order: uint8 centre crops (b, 3, size, size), int64 labels (b,), int64 indices (b,).

    `limit` above 0 takes that many evenly spaced pictures. Each rank gets a consecutive share; shares differ by one
    picture at most and may be empty. `UserError` as `TrainingSet`.
    """
    count = min(limit, len(source)) if limit else len(source)
    share = range(count * rank // world, count * (rank + 1) // world)
    indices = [i * len(source) // count for i in share]
    keys = (indices[start : start + batch] for start in range(0, len(indices), batch))
    return _load(EvaluationSet(source, size, upscale), keys, workers, pin_memory)


def _read(source: ImageSource, index: int, size: int, upscale: bool) -> tuple[Image.Image, int]:
    image, label = source.read(index)
    if min(image.size) < size and not upscale:
        raise UserError(
            f"{source.describe(index)} is {image.width}x{image.height} pixels, below the image size {size}: "
            "leave it out, choose a smaller size, or enlarge such pictures (--data.upscale in training, elsewhere "
            "--upscale)"
        )
    return image, label


def _load(dataset: Dataset[Any], keys: Iterable[list[Any]], workers: int, pin_memory: bool) -> Batches[Any]:
    """Batches of `dataset` for lists of its keys, in that order, made by `workers` processes that start at once."""
    loader_options: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _block_signals,
        # a loader without its own generator draws from torch's global one: a resumed run would draw once more
        "generator": torch.Generator(),
    }
    with warnings.catch_warnings(), _signals_blocked():
        # more workers than cores is the user's choice: it helps where storage is slow
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(_ErrorsAsValues(dataset), batch_sampler=keys, collate_fn=_collate, **loader_options)
        return Batches(iter(loader))


class _ErrorsAsValues(Dataset[Any]):
    """Hands a `UserError` on as a value, since DataLoader would raise it again with a worker's traceback as text."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate(samples: list[Any]) -> tuple[Tensor, ...] | UserError:
    errors = (sample for sample in samples if isinstance(sample, UserError))
    return next(errors, None) or tuple(default_collate(samples))


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started in here never see Ctrl-C or SIGTERM, not even while they start. Both reach the whole process
    group, but what follows is the trainer's decision, and it needs its workers to finish the step. Workers notice by
    themselves when it is gone."""
    before = _block_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _block_signals(worker: int = 0) -> set[Any]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


@atexit.register
def _close_all() -> None:
    # at exit, multiprocessing would send SIGTERM to workers still running and wait for them without end
    for batches in list(_open_batches):
        batches.close()
