"""A study's folder and the evaluations in it: made once, and reused where settings and inputs are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import file_sha256
from fqgan.base.folder import ResumableFolder
from fqgan.base.printing import say, say_lines
from fqgan.config import SamplingConfig
from fqgan.config.evaluation import MADE_WITHOUT, GeneratorEvaluation, TokenizerEvaluation
from fqgan.engine.session import running
from fqgan.evaluation.generated import evaluate_generator
from fqgan.evaluation.protocol import differences, read_result
from fqgan.evaluation.reconstructions import evaluate_tokenizer
from fqgan.evaluation.scores import depends_on_network
from fqgan.evaluation.sets import content_of, open_set
from fqgan.nets.measuring import load_network

Numbers = dict[str, float]
_PLACES = {"checkpoint", "samples"}
"""Settings that say where something lies: of the model, `Measurement.model` says which it is."""
_DRAWN_BY = {"num", "seed", "batch", "precision", "tokenizer", *(field.name for field in fields(SamplingConfig))}


@contextmanager
def study_folder(path: Path) -> Iterator[None]:
    """Hold a study's folder. `UserError` where another process fills it, and for a folder of something else."""
    holds = [path / name for name in ("rows", "measured", "table.md")]
    folder = ResumableFolder(path, kind="folder of a study", known=lambda: any(each.exists() for each in holds))
    folder.take()
    try:
        yield
    finally:
        folder.abandon()


@dataclass(frozen=True)
class Measurement:
    """An evaluation, and what its result depends on."""

    settings: TokenizerEvaluation | GeneratorEvaluation
    device: str
    """A `fqgan.config.devices.Device`."""
    model: str = ""
    """Fingerprint of the model, where another one may come to lie at the same place."""

    def content(self) -> dict[str, Any]:
        """Settings and fingerprints of inputs, as JSON has them: the result of an equal measurement is the same."""
        settings = {name: value for name, value in _plain(self.settings).items() if name not in MADE_WITHOUT | _PLACES}
        inputs = input_fingerprints(self.settings.features, self.settings.data, self.settings.split)
        return {"settings": settings, "device": self.device, "inputs": {"model": self.model, **inputs}}

    def is_done(self, file: Path) -> bool:
        """Whether a file holds the result of an equal measurement."""
        try:
            request = schema.entry(read_result(file), "request", dict, file)
            settings = schema.entry(request, "settings", dict, file)
        except UserError:
            return False
        older = getattr(self.settings, "from_older", dict)
        return {**request, "settings": older(settings)} == self.content()

    def measure(self, file: Path) -> None:
        """Evaluate, print the table, and write the result with what it depends on beside it."""
        content = self.content()  # of the files as they are now
        with running(self.device) as world:
            if isinstance(self.settings, TokenizerEvaluation):
                found = evaluate_tokenizer(self.settings, world)
            else:
                found = evaluate_generator(self.settings, world)
        say_lines(found.table())
        for warning in found.warnings:
            say(f"warning: {warning}")
        found.write(file, request=content)

    def drawn_into(self, folder: Path, stem: str) -> Measurement:
        """The same with its pictures in a folder of their own, where it is a generator's: `stem` and eight letters.
        Measurements with other real images, or another network that looks at the pictures, draw the same."""
        if not isinstance(self.settings, GeneratorEvaluation):
            return self
        drawn = {name: value for name, value in _plain(self.settings).items() if name in _DRAWN_BY}
        letters = hashlib.sha256(json.dumps([drawn, self.device], sort_keys=True).encode()).hexdigest()[:8]
        return replace(self, settings=replace(self.settings, samples=folder / f"{stem}-{letters}"))


def _plain(settings: Any) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return json.loads(json.dumps(values, default=str))


@lru_cache(maxsize=32)
def input_fingerprints(network: str, data: str, split: str) -> dict[str, str]:
    """What a measurement's names stand for: the weights of a network, and which images these are. A retrained
    classifier or other images are measured anew."""
    given = open_set(data, split)
    found = {"features": str(load_network(network).describe()["weights"])}
    if given.source is not None:
        found["data"] = content_of(given.source)
    if given.statistics is not None:  # beside images, too: the distance is taken to them
        found["statistics"] = f"sha256:{file_sha256(Path(data).expanduser())}"
    return found


def scores_of(result: dict[str, Any], network: str) -> Numbers:
    """`frechet`, `kernel_distance` and the like under `name/network`, the rest under their own names."""
    found = {
        f"{name}/{network}" if depends_on_network(name) else name: float("nan") if value is None else float(value)
        for name, value in result["metrics"].items()
    }
    if factors := result.get("factors"):
        found["usage"] = sum(factor["usage"] for factor in factors.values()) / len(factors)
    return found


class OneProtocol:
    """Lets results pass that were made under one protocol for each network.

    Args:
        apart: sides of the protocol in which they may differ.
    """

    def __init__(self, apart: Sequence[str] = ()) -> None:
        self._apart, self._first = apart, dict[str, tuple[Path, dict[str, Any]]]()

    def read(self, file: Path, network: str) -> dict[str, Any]:
        """A result; `UserError` where it was not measured as the first one was."""
        result = read_result(file)
        before, reference = self._first.setdefault(network, (file, result))
        apart = [side for side in self._apart if side in result["protocol"]]
        if changed := differences(reference, result, apart):
            key, (was, now) = next(iter(changed.items()))
            raise UserError(
                f"{file} was not measured as {before} was ({key}: {now!r}, not {was!r}): delete the one that is out of "
                "date, and start again"
            )
        return result
