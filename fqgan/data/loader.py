"""Batches for training, resumable at any step, and for evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fqgan.base.errors import TooSmallError, UnreadableError, UserError
from fqgan.base.spread import spread_evenly
from fqgan.config import DataConfig
from fqgan.config.data import Small
from fqgan.data.decode import decode_image
from fqgan.data.order import SampleStream, sample_rng
from fqgan.data.sources import ImageSource
from fqgan.data.tokens import TokenStore
from fqgan.data.transforms import (
    NUM_CROPS,
    CropKind,
    center_crop,
    crops,
    fits,
    flip,
    jitter,
    normalize,
    random_crop,
    resize_shorter,
    to_tensor,
    turn,
)
from fqgan.data.unreadable import SMALL, Note
from fqgan.data.workers import Batches, load

# Keep these uses of (seed, epoch, index) apart from others; not 0, as SeedSequence pads short keys with zeros.
_AUGMENTATION_TAG = 0xA06
_SUBSTITUTE_TAG = 0x5B5
_CROP_TAG = 0xC20
_TRIES = 32  # substitutes drawn from an unreadable picture's block, and as many from everywhere

Key = tuple[int, int]


class TrainingSet:
    """Augmented training images by (epoch, index): uint8 (3, size, size) and label.

    Crop and flip depend on (seed, epoch, index) alone, so that any rank and any worker makes the same image.
    `UnreadableError` for a picture that cannot be read, and for one below `size` as the source's options say.
    """

    def __init__(self, source: ImageSource, config: DataConfig, size: int, seed: int) -> None:
        self.source = source
        self.config = config
        self.size = size
        self.seed = seed
        self._ends = np.cumsum(source.blocks)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        return self._sample(key)[0]

    def _sample(self, key: Key) -> tuple[tuple[Tensor, int], list[Note]]:
        image, label, notes = _read(self.source, key[1], self.size)
        return (to_tensor(self._augment(image, sample_rng(self.seed, key, _AUGMENTATION_TAG))), label), notes

    def read_or_replace(self, key: Key) -> tuple[tuple[Tensor, int], list[Note]]:
        """The sample, or a substitute where its picture cannot be read; and what is wrong with the pictures tried
        before.

        The substitute depends on (seed, epoch, index) alone, as all else does. `UserError` when it cannot be read
        either after many draws, and for the first unreadable picture where `config.max_unreadable` is 0.
        """
        failed: dict[Key, Note] = {}
        for candidate in itertools.chain([key], self._substitutes(key)):
            if candidate in failed:
                continue
            try:
                sample, notes = self._sample(candidate)
                return sample, [*failed.values(), *notes]
            except UnreadableError as error:
                if not self.config.max_unreadable and not isinstance(error, TooSmallError):
                    raise
                failed[candidate] = Note.of(error)
        raise UserError(
            f"{failed[key].text}; nor can {len(failed) - 1} others of {self.source.name} that were tried instead"
        )

    def _substitutes(self, key: Key) -> Iterator[Key]:
        """Samples to take in the place of `key`: first of its block, which is at hand."""
        epoch, index = key
        block = int(np.searchsorted(self._ends, index, side="right"))
        end = int(self._ends[block])
        rng = sample_rng(self.seed, key, _SUBSTITUTE_TAG)
        for low, high in ((end - self.source.blocks[block], end), (0, len(self.source))):
            for _ in range(_TRIES):
                yield epoch, int(rng.integers(low, high))

    def _augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.config.crop_min == self.config.crop_max == 1:
            image = center_crop(image, self.size)
        else:
            image = random_crop(image, self.size, rng, self.config.crop_min, self.config.crop_max)
        if self.config.flip and rng.random() < 0.5:
            image = flip(image)
        if self.config.turn:
            image = turn(image, int(rng.integers(4)))
        return jitter(image, rng, self.config.jitter) if self.config.jitter else image


class EvaluationSet:
    """Centre crops by index: uint8 (3, size, size), label and the index itself. Errors as `TrainingSet`."""

    def __init__(self, source: ImageSource, size: int, small: Small | None = None) -> None:
        self.source = source
        self.size = size
        self.small: Small | None = small
        """What becomes of small pictures; None: as the source's options say."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.read(index)[0]

    def read(self, index: int) -> tuple[tuple[Tensor, int, int], list[Note]]:
        """A sample for `load`; a picture that cannot be read ends the reading."""
        image, label, notes = _read(self.source, index, self.size, self.small)
        return (to_tensor(center_crop(image, self.size)), label, index), notes

    def read_or_skip(self, index: int) -> tuple[tuple[Tensor, int, int] | None, list[Note]]:
        """The sample, or None and what is wrong where its picture cannot be read."""
        try:
            return self.read(index)
        except UnreadableError as error:
            return None, [Note.of(error)]


class CropSet:
    """The crops of `fqgan.data.transforms.crops` by index: uint8 (crops, 3, size, size), and what is wrong where the
    picture cannot be read (its crops are black then); empty otherwise. `UserError` as `TrainingSet`."""

    def __init__(self, source: ImageSource, size: int, kind: CropKind, crop_range: float) -> None:
        self.source = source
        self.size = size
        self.kind: CropKind = kind
        self.crop_range = crop_range

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.read(index)[0]

    def read(self, index: int) -> tuple[tuple[Tensor, str], list[Note]]:
        """A sample for `load`: its readers hear of unreadable pictures in place, so that none shifts another."""
        try:
            image, _, notes = _read(self.source, index, self.size)
        except UnreadableError as error:
            notes = [Note.of(error)] if isinstance(error, TooSmallError) else []
            return (torch.zeros(NUM_CROPS[self.kind], 3, self.size, self.size, dtype=torch.uint8), str(error)), notes
        cut = crops(image, self.size, self.kind, self.crop_range)
        return (torch.stack([to_tensor(crop) for crop in cut]), ""), notes


class PictureSet:
    """Pictures by index, as they are shown: uint8 (3, H, W), (2,) height and width of the file, and what is wrong where
    it cannot be read (the picture is black then); empty otherwise. `UserError` as `TrainingSet`.

    Args:
        size: of the shorter side, in pixels; 0: as it is, of whole pictures.
        whole: at their own aspect; otherwise the square in the middle.
    """

    def __init__(self, source: ImageSource, size: int, whole: bool) -> None:
        self.source, self.size, self.whole = source, size, whole

    def read(self, index: int) -> tuple[tuple[Tensor, Tensor, str], list[Note]]:
        """A sample for `load`."""
        try:
            image, _, _ = _read(self.source, index, self.size)
        except UnreadableError as error:
            return (torch.zeros(3, 1, 1, dtype=torch.uint8), torch.ones(2, dtype=torch.int64), str(error)), []
        own = torch.tensor([image.height, image.width])
        if not self.whole:
            image = center_crop(image, self.size)
        elif self.size:
            image = resize_shorter(image, self.size)
        return (to_tensor(image), own, ""), []


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

    `SampleStream.batches` says which ones.

    A picture that cannot be read is replaced by another (see `TrainingSet`), named in a warning and counted in
    `Batches.unreadable`. `UserError` when `batch` is no multiple of micro_batch * world, for more ranks than
    pictures, when no substitute is found, and for pictures that are too small.
    """
    check_ranks(source, world)
    stream = SampleStream(source.blocks, seed, config.window, config.lanes)
    keys = stream.batches(batch=batch, micro_batch=micro_batch, rank=rank, world=world, start_step=start_step)
    source.reserve(stream.blocks_at_hand(world))
    return load(TrainingSet(source, config, size, seed).read_or_replace, keys, config.workers, pin_memory)


def check_ranks(source: ImageSource | TokenStore, world: int) -> None:
    """`UserError` for more ranks than pictures. A batch may be larger than the data set: the stream goes on."""
    if world > len(source):
        raise UserError(f"{source.name} holds {len(source)} picture(s) for {world} ranks: start no more than it holds")


def token_batches(
    store: TokenStore, *, seed: int, batch: int, micro_batch: int, rank: int, world: int, start_step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's micro-batches of a token store from optimizer step `start_step` on, without end: codes
    (micro_batch, k, h, w) and labels (micro_batch,), both int64. `SampleStream.batches` says which ones.

    An epoch has one crop of each image, drawn from (seed, epoch, index). `UserError` when `batch` is no multiple of
    micro_batch * world.
    """
    stream = SampleStream(store.blocks, seed, window=1)
    for keys in stream.batches(batch=batch, micro_batch=micro_batch, rank=rank, world=world, start_step=start_step):
        crops = [int(sample_rng(seed, key, _CROP_TAG).integers(store.num_crops)) for key in keys]
        yield store.take([index for _, index in keys], crops)


def evaluation_batches(
    source: ImageSource,
    *,
    size: int,
    batch: int,
    limit: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Batches[tuple[Tensor, Tensor, Tensor]]:
    """Every picture once and in order: uint8 centre crops (b, 3, size, size), int64 labels (b,), int64 indices (b,).

    `limit` above 0 takes that many evenly spaced pictures. Each rank gets a consecutive share; shares differ by one
    picture at most and may be empty. A picture that cannot be read is left out, named in a warning and counted in
    `Batches.unreadable`. `UserError` for pictures that are too small.
    """
    indices = spread_evenly(len(source), limit, rank, world)
    keys = (indices[start : start + batch] for start in range(0, len(indices), batch))
    return load(EvaluationSet(source, size).read_or_skip, keys, workers, False)


def _read(
    source: ImageSource, index: int, size: int, small: Small | None = None
) -> tuple[Image.Image, int, list[Note]]:
    """A picture, its label, and a note where it is below `size` and will be enlarged; errors as `fits` has them."""
    image, label = source.read(index)
    if min(image.size) >= size:
        return image, label, []
    fits(image, size, small or source.options.small, source.describe(index))
    return image, label, [SMALL]


def load_images(paths: str | Path | Iterable[str | Path], size: int = 256, small: Small = "enlarge") -> Tensor:
    """Read one picture file or several -> (b, 3, size, size) float32 in [-1, 1], ADM centre crops.

    Args:
        small: what becomes of pictures whose shorter side is below `size` pixels: they are enlarged, or refused (also
            where the word is `skip`, as a caller counts on one image a path).

    Raises:
        UserError: a file is missing, unreadable, or refused.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise UserError("no picture to load: the list of paths is empty")
    return normalize(torch.stack([to_tensor(center_crop(_read_file(file, size, small), size)) for file in files]))


def _read_file(file: Path, size: int, small: Small) -> Image.Image:
    image = decode_image(file, str(file))
    fits(image, size, "enlarge" if small == "enlarge" else "refuse", str(file))
    return image
