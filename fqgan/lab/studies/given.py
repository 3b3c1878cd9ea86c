"""Tokenizers that are there, and what a study of their factors asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fqgan.base.progress import image_bar
from fqgan.config import SourceOptions
from fqgan.data.sources import ImageSource, open_source
from fqgan.engine.distributed import pick_device
from fqgan.engine.speed import keep_freed_memory
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.studies.features import FactorFeatures, factor_features
from fqgan.lab.studies.settings import InspectionOptions
from fqgan.lab.studies.tables import file_stem
from fqgan.tokenizer.model import FactorizedTokenizer, load_tokenizer

Models = Mapping[str, FactorizedTokenizer]
"""Name in the tables -> tokenizer."""


def load_models(options: InspectionOptions) -> Models:
    """The tokenizers that a study's options name. `UserError` for a device or a model that is not there."""
    require_matplotlib()
    keep_freed_memory()
    device = pick_device(options.device)
    paths = options.models.items()
    return {name: load_tokenizer(path, device, options.weights, options.precision) for name, path in paths}


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
