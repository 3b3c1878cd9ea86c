"""The models that a server offers, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.config import SamplingConfig
from fqgan.engine.sizes import num_parameters
from fqgan.generator.model import FAR, load_generator
from fqgan.models import hub
from fqgan.models.find import Source, find
from fqgan.tokenizer.model import FactorizedTokenizer


@dataclass(frozen=True)
class Place:
    """Where a named model lies."""

    name: str
    path: Path
    source: Source


class Served:
    """A named model on one device.

    Attributes:
        name: that requests call it by.
        model: a tokenizer, or a generator that carries its tokenizer.
    """

    def __init__(self, name: str, model: FAR | FactorizedTokenizer):
        self.name, self.model = name, model
        self.fingerprint = self.tokenizer.fingerprint()
        self._labels: list[dict[str, list[int]]] = [{}, {}]
        """Classes by name, and by name in small letters."""
        for i, name in enumerate(model.label_names if isinstance(model, FAR) else ()):
            for labels, key in zip(self._labels, (name, name.casefold()), strict=True):
                labels.setdefault(key, []).append(i)
        self.facts = self._facts()

    @property
    def generator(self) -> FAR:
        """`UserError` where it is none."""
        if not isinstance(self.model, FAR):
            raise UserError(f"the model {self.name} is a tokenizer, and only a generator can do this")
        return self.model

    @property
    def tokenizer(self) -> FactorizedTokenizer:
        """The tokenizer, or the one that the generator carries."""
        found = self.model if isinstance(self.model, FactorizedTokenizer) else self.model.tokenizer
        assert isinstance(found, FactorizedTokenizer), "no address of others is served"
        return found

    @property
    def factors(self) -> list[str]:
        """Names of the factors."""
        return [factor.name for factor in self.tokenizer.config.factors]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a generator's positions, or of a tokenizer's at the size that it was trained at."""
        config = self.model.config
        return (config.grid, config.grid) if isinstance(config.grid, int) else (config.grid[0], config.grid[1])

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the model's own pictures."""
        h, w = self.grid
        return h * self.tokenizer.config.downsampling, w * self.tokenizer.config.downsampling

    def label(self, word: str | int) -> int:
        """The class of a name or number; `UserError` for one that is none, and for a name that several classes have. A
        number as text is a name where a class has such a name."""
        generator = self.generator
        count, names = generator.config.num_classes, generator.label_names
        if not count:
            raise UserError(f"the model {self.name} has no classes: leave them out")
        text = str(word).strip()[:1000]
        for labels, key in zip(self._labels, (text, text.casefold()), strict=True):
            found = labels.get(key, []) if isinstance(word, str) else []
            if len(found) > 1:
                several = ", ".join(map(str, found[:9])) + (", ..." if len(found) > 9 else "")
                raise UserError(f"{text[:60]!r} names the classes {several} of the model {self.name}: give the number")
            if found:
                return found[0]
        if re.fullmatch("[0-9]{1,9}", text) and int(text) < count:
            return int(text)
        known = f"it has the numbers 0 to {count - 1}{' and names' if names else ', no names'}"
        raise UserError(f"{text[:60]!r} is no class of the model {self.name}: {known}{did_you_mean(text[:60], names)}")

    def _facts(self) -> dict[str, Any]:
        """What /api/models says of it, but for the tokenizer's name."""
        tokenizer, config = self.tokenizer.config, self.model.config
        k = len(tokenizer.factors)
        facts: dict[str, Any] = {
            "name": self.name,
            "kind": self.model.kind,
            "factors": self.factors,
            "codebook_sizes": list(self.tokenizer.codebook_sizes),
            "grid": list(self.grid),
            "image_size": max(self.pixels),
            "downsampling": tokenizer.downsampling,
            "classes": [],
            "num_classes": 0,
            "parameters": num_parameters(self.model),
            "card": re.sub(r"\A---\n.*?\n---\n+", "", self.model.card(), flags=re.DOTALL),
            "defaults": None,
        }
        if isinstance(self.model, FAR):
            sampling = SamplingConfig().resolved(conditional=config.num_classes > 0)
            facts |= {
                "classes": list(self.model.label_names),
                "num_classes": config.num_classes,
                "defaults": {
                    "cfg_scale": sampling.cfg_scale[0],
                    **{name: list(getattr(sampling, name) * k) for name in ("temperature", "top_k", "top_p")},
                },
            }
        return facts


class Catalogue:
    """All models of one device."""

    def __init__(self, models: Iterable[Served]):
        self.models = {served.name: served for served in models}

    def facts(self) -> list[dict[str, Any]]:
        """What /api/models says, in the order in which they were named."""
        names = {each.fingerprint: each.name for each in self.models.values() if each.model.kind == "tokenizer"}
        return [
            each.facts | {"tokenizer": names.get(each.fingerprint) if each.model.kind == "generator" else None}
            for each in self.models.values()
        ]

    def get(self, name: str | None, kind: str = "") -> Served:
        """The model of a name, or where none is named the only one (of a kind; where a tokenizer is wanted and none is
        served, a generator, which brings its own along). `UserError` where there is none."""
        if name is not None:
            if name not in self.models:
                raise UserError(f"there is no model {name[:60]!r} here{did_you_mean(name[:60], self.models)}")
            return self.models[name]
        every = list(self.models.values())
        fitting = [each for each in every if not kind or each.model.kind == kind]
        fitting = fitting or (every if kind == "tokenizer" else [])
        if len(fitting) != 1:
            listed = ", ".join(each.name for each in fitting) or f"no {kind or 'model'}"
            raise UserError(f"name the model: this server has {listed}")
        return fitting[0]


def places(words: Sequence[str]) -> list[Place]:
    """Where the models of a command line lie. `UserError` for two of one name, and for what is no model."""
    found: dict[str, Place] = {}
    for word in words:
        name, path = _split(word)
        local = hub.local(path)
        name = name or (Path(path.partition("@")[0]).name if path.startswith(hub.PREFIX) else hub.run_of(local).name)
        if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
            raise UserError(f"{name!r} cannot name a model: letters, digits, - . and _ can, as in NAME={path}")
        if name in found:
            raise UserError(f"two models are called {name}: name them, as in one={found[name].path} two={path}")
        found[name] = Place(name, local, find(local))
    return list(found.values())


def load(chosen: Sequence[Place], device: torch.device, precision: str) -> Catalogue:
    """All models on a device. `UserError` for a generator whose tokenizer is not there."""
    tokenizers = {
        place.name: FactorizedTokenizer.from_pretrained(place.path, device, precision=precision)
        for place in chosen
        if place.source.kind == "tokenizer"
    }
    served: list[Served] = []
    for place in chosen:
        model = tokenizers.get(place.name) or load_generator(place.path, device, precision=precision)
        if isinstance(model, FAR) and not model.has_tokenizer:
            model.carry(_tokenizer_of(place, model, list(tokenizers.values())))
        served.append(Served(place.name, model))
    return Catalogue(served)


def _tokenizer_of(place: Place, generator: FAR, tokenizers: list[FactorizedTokenizer]) -> FactorizedTokenizer:
    """Of the served tokenizers the one that a generator without its own belongs to."""
    known = place.source.facts.get("tokenizer", "")
    if address := place.source.facts.get("tokenizer_address"):
        raise UserError(f"the generator {place.name} makes codes of {address}: no tokenizer by address is served")
    sizes = generator.config.codebook_sizes
    fitting = [each for each in tokenizers if (each.fingerprint() == known if known else each.codebook_sizes == sizes)]
    if len(fitting) != 1:
        raise UserError(f"the generator {place.name} carries no tokenizer: serve the one that it belongs to, too")
    return fitting[0]


def _split(word: str) -> tuple[str, str]:
    """NAME=PATH, or a path alone."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and not re.search(r"[/:]", name) and not Path(word).exists() else ("", word)
