"""The tokenizers that a study of factors looks at, and their features and codes on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.progress import image_bar
from fqgan.base.spread import spread_evenly
from fqgan.config import SourceOptions
from fqgan.data.loader import EvaluationSet
from fqgan.data.sources import ImageSource, open_source
from fqgan.data.transforms import normalize
from fqgan.data.workers import load
from fqgan.engine.devices import pick_device
from fqgan.engine.speed import keep_freed_memory
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.studies.measures import Array, Labels
from fqgan.lab.studies.settings import InspectionOptions
from fqgan.lab.studies.tables import file_stem
from fqgan.tokenizer.model import FactorizedTokenizer

KINDS = ("continuous", "discrete")
"""Before quantization, and the embeddings of the codes; both are of length 1."""
POOLS = ("mean", "grid")
"""An image's point: the mean over its positions, or all of them one after the other."""
Models = Mapping[str, FactorizedTokenizer]
"""Name in the tables -> tokenizer."""


def load_models(options: InspectionOptions) -> Models:
    """The tokenizers that a study's options name. `UserError` for a device or a model that is not there."""
    require_matplotlib()
    keep_freed_memory()
    device = pick_device(options.device)
    load = FactorizedTokenizer.from_pretrained
    return {name: load(path, device, options.weights, options.precision) for name, path in options.models.items()}


def images_of(options: InspectionOptions, data: str = "", split: str = "") -> ImageSource:
    """The images that the options name, or others that are understood in the same way."""
    return open_source(data or options.data, split or options.split, SourceOptions(small=options.small))


def size_for(options: InspectionOptions, tokenizer: FactorizedTokenizer) -> int:
    """Pixels a side of the crops that a tokenizer sees. `UserError` where it takes no such size."""
    size = options.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    return size


def factors(tokenizer: FactorizedTokenizer) -> list[str]:
    """Their names."""
    return [factor.name for factor in tokenizer.config.factors]


def stem_of(kind: str, name: str, models: Models) -> str:
    """Of a picture's files: the model's name is a part of it where there are several."""
    return kind if len(models) == 1 else f"{kind}-{file_stem(name)}"


@dataclass(frozen=True)
class FactorFeatures:
    """What a tokenizer makes of n images."""

    continuous: list[Tensor]
    """One (n, d, h, w) float32 a factor: normalised features before quantization."""
    discrete: list[Tensor]
    """The same of the codes' embeddings."""
    codes: Tensor
    """(n, k, h, w) int64."""
    labels: Labels
    """(n,)."""
    unreadable: int

    def points(self, kind: str, factor: int, pool: str) -> Array:
        """A point an image, (n, d) or (n, d h w)."""
        vectors: Tensor = getattr(self, kind)[factor]
        return (vectors.mean((2, 3)) if pool == "mean" else vectors.flatten(1)).double().numpy()

    def vectors(self, kind: str, factor: int) -> Tensor:
        """A vector a position, (n h w, d)."""
        return getattr(self, kind)[factor].movedim(1, -1).flatten(0, 2)


def pick(source: ImageSource, count: int, classes: Sequence[int] = ()) -> list[int]:
    """Indices of `count` images, evenly spread: over the source, or over each of `classes` (`count` of each). 0: all.
    `UserError` for a class without images."""
    if not classes:
        return spread_evenly(len(source), count)
    found: list[int] = []
    for label in classes:
        own = np.flatnonzero(source.labels == label)
        if not len(own):
            raise UserError(f"{source.name} has no image of class {name_of(source, label)}")
        found += own[spread_evenly(len(own), count)].tolist()
    return found


def name_of(source: ImageSource, label: int) -> str:
    """A class's name, or its number."""
    return source.classes[label] if 0 <= label < len(source.classes) else str(label)


@torch.inference_mode()
def factor_features(
    tokenizer: FactorizedTokenizer,
    source: ImageSource,
    indices: Sequence[int],
    *,
    size: int,
    batch: int = 64,
    workers: int = 0,
    advance: Callable[[int], None] = lambda images: None,
) -> FactorFeatures:
    """Features and codes of the images at `indices`, as centre crops of `size` pixels; on the CPU. Pictures that cannot
    be read are left out and counted. `UserError` where none can be read."""
    device = next(tokenizer.parameters()).device
    keys = (list(indices[start : start + batch]) for start in range(0, len(indices), batch))
    batches = load(EvaluationSet(source, size).read_or_skip, keys, workers, False)
    continuous: list[list[Tensor]] = [[] for _ in range(tokenizer.num_factors)]
    codes, labels = [], []
    for raw, label, _ in batches:
        quantized = tokenizer.quantize(normalize(raw.to(device)))
        for kept, each in zip(continuous, quantized, strict=True):
            kept.append(each.features.float().cpu())
        codes.append(torch.stack([each.codes for each in quantized], 1).cpu())
        labels.append(label)
        advance(len(raw))
    if not codes:
        raise UserError(f"not one picture of {source.name} could be read")
    whole = torch.cat(codes)
    discrete = [each.float().cpu() for part in whole.split(batch) for each in tokenizer.embed(part.to(device))]
    k = tokenizer.num_factors
    return FactorFeatures(
        [torch.cat(each) for each in continuous],
        [torch.cat(discrete[i::k]) for i in range(k)],
        whole,
        torch.cat(labels).numpy(),
        batches.unreadable,
    )


@dataclass(frozen=True)
class Encoding:
    """Some images of a source, to be seen by one tokenizer after the other."""

    options: InspectionOptions
    source: ImageSource
    indices: Sequence[int]
    label: str = "encoding"
    """In front of the progress bar."""

    def features(self, name: str, tokenizer: FactorizedTokenizer) -> FactorFeatures:
        """Features and codes of a named tokenizer on the images."""
        options = self.options
        with image_bar(f"{self.label} {name}", len(self.indices)) as advance:
            return factor_features(
                tokenizer,
                self.source,
                self.indices,
                size=size_for(options, tokenizer),
                batch=options.batch,
                workers=options.workers,
                advance=advance,
            )
