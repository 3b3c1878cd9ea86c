"""Tokenizers and generators from one form on disk to another. torch is loaded once an address on the hub is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, making_folder
from fqgan.base.printing import say
from fqgan.config.verbs import ConversionSettings
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.models.find import Kind, Source
    from fqgan.models.pretrained import Pretrained


@dataclass(frozen=True)
class Converted:
    """A model in another form."""

    out: Path
    """Folder or released file."""
    kind: Kind
    weights: str
    """`ema`, `raw`, or `exported` where the model does not tell."""
    parameters: int
    fingerprint: str
    """Of the weights (`fqgan.models.fingerprint`)."""


def convert(settings: ConversionSettings) -> Converted:
    """Write a model in another form: released files as folders of ours and back, runs as folders. Needs no device.

    Raises:
        UserError: a source that is no model, something in the way of what is to be written, a tokenizer for a
            tokenizer, or a form that cannot hold the model.
    """
    settings.check()
    path = hub.local(settings.source)
    from fqgan.engine.sizes import num_parameters
    from fqgan.generator.model import FAR
    from fqgan.models.find import find
    from fqgan.tokenizer.model import FactorizedTokenizer

    source = find(path)
    options = {name: value for name in ("tokenizer", "grid") if (value := getattr(settings, name))}
    if options and source.kind == "tokenizer":
        raise UserError(f"--{next(iter(options))} is for generators: {settings.source} is a tokenizer")
    cls = FAR if source.kind == "generator" else FactorizedTokenizer
    model = cls.from_pretrained(source.path, weights=settings.weights, **options)
    k = model.num_factors if isinstance(model, FactorizedTokenizer) else model.config.num_factors
    parameters = num_parameters(model)
    done = Converted(settings.out, source.kind, source.choose(settings.weights), parameters, model.fingerprint())
    say(
        f"{settings.source}: {done.kind} of {k} factor(s), {parameters:,} parameters, {done.weights} weights, "
        f"fingerprint {done.fingerprint}"
    )
    # a trained run keeps its raw weights itself
    both = settings.weights == "auto" and {"ema", "raw"} <= set(source.weights) and not source.trained
    raw = cls.of_source(source, "raw") if both else None
    discriminator = source.discriminator() if source.discriminator else {}
    kept = [*(["raw weights"] if both else []), *(["discriminator"] if discriminator else [])]
    if kept:
        say(f"with its {' and '.join(kept)}")
    write = _write_folder if settings.to == "folder" else _write_released
    write(settings.out, source, model, raw, discriminator)
    return done


def _write_folder(out: Path, source: Source, model: Pretrained, raw: Pretrained | None, discriminator: dict) -> None:
    from fqgan.engine.checkpoint import save_tensors
    from fqgan.models.find import DISCRIMINATOR, RAW

    make_folder(out.parent)
    with making_folder(out) as folder:
        model.save_pretrained(folder)
        if raw:
            save_tensors(raw.state_dict(), folder / RAW)
        if discriminator:
            save_tensors(discriminator, folder / DISCRIMINATOR)


def _write_released(out: Path, source: Source, model: Pretrained, raw: Pretrained | None, discriminator: dict) -> None:
    from fqgan.models.released.files import ReleasedFile, write
    from fqgan.models.released.layouts import arguments_of, raw_entry_of, to_released

    weights = {"raw": to_released((raw or model).state_dict(), model.config)}
    if raw:
        weights["ema"] = to_released(model.state_dict(), model.config)
    make_folder(out.parent)
    steps = model.provenance.get("steps", 0)
    args, entry = dict(arguments_of(model.config)), raw_entry_of(model.config)
    write(ReleasedFile(weights, discriminator, steps, args, entry), out)
