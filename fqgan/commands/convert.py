"""`fqgan convert SRC DST`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, making_folder
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.models.find import Source
    from fqgan.models.pretrained import Pretrained

PROG = "fqgan convert"


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A released file of FQGAN, LlamaGen or FAR, a run folder, a checkpoint, an export, or hf:org/name[@revision]."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The folder, or with --to released the file, to be written; must not exist yet."""
    to: Literal["folder", "released"] = "folder"
    """folder: config.json, model.safetensors and a model card. released: a .pt file of the released layout."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average or raw weights; auto: the average where there is one, and of a released file that has both the raw
    ones beside it."""
    tokenizer: str = ""
    """A tokenizer that a generator is to carry, if it has none or for another copy of its own."""


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(Arguments, argv, PROG, "Released files to folders of ours and back, runs to folders.")
    check_output(arguments.out, folder=arguments.to == "folder", option="DST", inputs=[arguments.source])
    if arguments.out.is_file() or (arguments.out.is_dir() and any(arguments.out.iterdir())):
        raise UserError(f"DST {arguments.out} exists: choose another name")
    path = hub.local(arguments.source)
    from fqgan.generator.model import FAR
    from fqgan.models.find import find
    from fqgan.tokenizer.model import FactorizedTokenizer

    source = find(path)
    if arguments.tokenizer and source.kind == "tokenizer":
        raise UserError(f"--tokenizer is for generators: {arguments.source} is a tokenizer")
    options = {"tokenizer": arguments.tokenizer} if arguments.tokenizer else {}
    cls = FAR if source.kind == "generator" else FactorizedTokenizer
    model = cls.from_pretrained(source.path, weights=arguments.weights, **options)
    k = model.num_factors if isinstance(model, FactorizedTokenizer) else model.config.num_factors
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(
        f"{arguments.source}: {source.kind} of {k} factor(s), {parameters:,} parameters, "
        f"{source.choose(arguments.weights)} weights, fingerprint {model.fingerprint()}"
    )
    # a trained run keeps its raw weights itself
    both = arguments.weights == "auto" and {"ema", "raw"} <= set(source.weights) and not source.trained
    raw = cls.of_source(source, "raw") if both else None
    discriminator = source.discriminator() if source.discriminator else {}
    kept = [*(["raw weights"] if both else []), *(["discriminator"] if discriminator else [])]
    if kept:
        say(f"with its {' and '.join(kept)}")
    write = _write_folder if arguments.to == "folder" else _write_released
    write(arguments.out, source, model, raw, discriminator)
    say(arguments.out)


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
    from fqgan.models.released.layouts import arguments_of, to_released

    weights = {"raw": to_released((raw or model).state_dict(), model.config)}
    if raw:
        weights["ema"] = to_released(model.state_dict(), model.config)
    make_folder(out.parent)
    steps = model.provenance.get("steps", 0)
    write(ReleasedFile(weights, discriminator, steps, dict(arguments_of(model.config))), out)
