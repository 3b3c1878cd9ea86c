"""Codes and classes of images, as a generator's evaluation takes them: of a token store, or encoded on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.spread import spread_evenly
from fqgan.config import SourceOptions
from fqgan.config.evaluation import LikelihoodEvaluation
from fqgan.data.loader import EvaluationSet
from fqgan.data.sources import ImageSource, announce, open_source
from fqgan.data.sources.base import listed
from fqgan.data.tokens import TokenStore, is_store
from fqgan.data.transforms import normalize
from fqgan.data.workers import Batches
from fqgan.engine.distributed import World, from_main
from fqgan.evaluation.collect import LeftUnmeasured, centre_crops
from fqgan.evaluation.protocol import CROP
from fqgan.evaluation.sets import content_of, describe
from fqgan.generator.model import FAR, load_generator
from fqgan.models.find import find
from fqgan.tokenizer.extraction import crops_per_pass
from fqgan.tokenizer.load import load_matching_tokenizer
from fqgan.tokenizer.passes import Passes, exact_convolutions

Coded = tuple[Tensor, Tensor, Tensor]
"""Codes (b, k, h, w), labels (b,) with -1 where there is none, indices (b,); int64."""


class Codes(ABC):
    """A set of images, by index, of which a generator sees the codes."""

    name: str
    class_names: tuple[str, ...]
    """May be empty, or fewer than there are classes."""
    num_classes: int
    size: int
    """Pixels a side."""
    count: int
    """Images of the set."""

    def __init__(self, settings: LikelihoodEvaluation, world: World):
        self.settings, self.world = settings, world

    @property
    def indices(self) -> list[int]:
        """The images that are taken, over all ranks."""
        return spread_evenly(self.count, self.settings.limit)

    factors: list[str]
    """Their names."""
    fingerprint: str
    """The tokenizer's."""

    @abstractmethod
    def batches(self) -> Iterator[Coded]:
        """This rank's share of the images."""

    @abstractmethod
    def pictures(self, indices: list[int]) -> Tensor:
        """What some images look like, (n, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """An image's name."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on, after all batches; called by all ranks."""


class StoredCodes(Codes):
    """Those of a token store: centre crops."""

    def __init__(self, settings: LikelihoodEvaluation, world: World, store: TokenStore):
        super().__init__(settings, world)
        self._store = store
        self.name, self.count = store.name, len(store)
        self.class_names, self.num_classes = store.label_names, store.num_classes
        self.size = store.manifest.options.image_size
        self.factors, self.fingerprint = store.factor_names, store.tokenizer_fingerprint
        # pictures are written with the other files, after hours perhaps
        self._tokenizer = "" if settings.out == Path() else store.tokenizer_at(settings.tokenizer)

    def batches(self) -> Iterator[Coded]:
        share = spread_evenly(self.count, self.settings.limit, self.world.rank, self.world.size)
        for start in range(0, len(share), self.settings.batch):
            part = share[start : start + self.settings.batch]
            yield *self._take(part), torch.tensor(part)

    @torch.inference_mode()
    def pictures(self, indices: list[int]) -> Tensor:
        parts = [self._take(indices[i : i + 16])[0] for i in range(0, len(indices), 16)]
        tokenizer = load_matching_tokenizer(self._tokenizer, self.fingerprint, self.name, self.world.device)
        return torch.cat([tokenizer.decode(part).cpu() for part in parts])

    def describe(self, index: int) -> str:
        return f"image {index}"

    def protocol(self) -> dict[str, Any]:
        left_out = {"unreadable": len(self._store.manifest.unreadable), "skipped": 0, "enlarged": 0}
        return {"count": len(self.indices), "of": self.count, **left_out, "store": self._store.data_fingerprint()}

    def _take(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self._store.take(indices, [self._store.center_crop] * len(indices))


class EncodedCodes(Codes):
    """Those of images: centre crops, encoded as `fqgan extract` does."""

    def __init__(self, settings: LikelihoodEvaluation, world: World, source: ImageSource, generator: FAR):
        super().__init__(settings, world)
        self._source, self.tokenizer = source, generator.tokenizer
        self._batches: Batches[Any] | None = None
        self.name, self.count, self.class_names = source.name, len(source), source.classes
        self.num_classes = max(len(source.classes), int(source.labels.max(initial=-1)) + 1)
        self.size = generator.config.grid[0] * self.tokenizer.config.downsampling
        self.factors = [factor.name for factor in self.tokenizer.config.factors]
        self.fingerprint = self.tokenizer.fingerprint()

    def batches(self) -> Iterator[Coded]:
        world = self.world
        self._batches = centre_crops(self._source, self.size, self.settings, world)
        grid = (self.size // self.tokenizer.config.downsampling,) * 2
        per_pass = crops_per_pass(self.size, world.device)
        with exact_convolutions(), Passes(self.tokenizer, world.device, per_pass) as passes:
            for images, labels, indices in self._batches:
                passes.add(images)
                yield torch.from_numpy(passes.finish()).long().unflatten(2, grid), labels, indices

    def pictures(self, indices: list[int]) -> Tensor:
        crops = EvaluationSet(self._source, self.size)
        return normalize(torch.stack([crops[index][0] for index in indices]))

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def protocol(self) -> dict[str, Any]:
        assert self._batches is not None
        left_out = LeftUnmeasured.of(self._batches, self._source, self.world)
        content = from_main(lambda: content_of(self._source))
        return {**describe(self._source, self.indices, left_out), "content": content, "crop": CROP}


def open_codes(settings: LikelihoodEvaluation, world: World) -> tuple[FAR, Codes]:
    """The generator and the codes that it is to predict. `UserError` where there is no such model or data, and where
    the codes are not those that the generator learned."""
    options = {"device": world.device, "weights": settings.weights}
    if is_store(settings.data):
        store = TokenStore.open(settings.data)
        generator = load_generator(settings.checkpoint, **options, with_tokenizer=False)
        known = find(settings.checkpoint, "generator").facts.get("tokenizer", "")
        model = generator.config
        if known not in ("", store.tokenizer_fingerprint) or model.codebook_sizes != store.codebook_sizes:
            raise UserError(f"the codes of {store.name} are of another tokenizer than those that the generator learned")
        data = StoredCodes(settings, world, store)
        if model.grid != store.grid:
            _refuse_grid(model.grid, store.grid, data)
        return generator, data
    generator = load_generator(settings.checkpoint, **options, tokenizer=settings.tokenizer)
    source = open_source(settings.data, settings.split, SourceOptions.of(settings))
    data = EncodedCodes(settings, world, source, generator)
    if world.is_main:
        announce(source, data.size)
    grid = (generator.config.grid[0],) * 2
    if generator.config.grid != grid:
        _refuse_grid(generator.config.grid, grid, data)
    return generator, data


def _refuse_grid(own: tuple[int, ...], given: tuple[int, ...], data: Codes) -> None:
    ours, theirs = ("x".join(map(str, each)) for each in (own, given))
    raise UserError(f"the generator's token grid is {ours}, that of {data.name} is {theirs}")


def labels_between(data: Codes, generator: FAR) -> Tensor:
    """(num_classes + 1,) int64: a label of the data -> the generator's, so that `table[labels]` also turns -1 into -1.
    By name where both have names. `UserError` for classes that the generator does not know."""
    known, names = generator.config.num_classes, generator.label_names
    if not known or data.settings.labels == "none":
        return torch.full((data.num_classes + 1,), -1)
    table = [*range(data.num_classes), -1]
    if names and data.class_names:
        own = {name: label for label, name in enumerate(names)}
        if missing := [name for name in data.class_names if name not in own]:
            raise UserError(
                f"{data.name} has classes that the generator does not know by name: {listed(missing)}; with --labels "
                "none all images are of no class"
            )
        table[: len(data.class_names)] = [own[name] for name in data.class_names]
    if max(table) >= known:
        raise UserError(f"{data.name} has {data.num_classes} classes, and the generator {known}")
    return torch.tensor(table)
