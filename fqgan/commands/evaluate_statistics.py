"""`fqgan evaluate statistics DATA --out FILE.safetensors`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.commands.measuring import MeasuringOptions, features_of, size_of
from fqgan.config import SourceOptions

PROG = "fqgan evaluate statistics"


@dataclass(frozen=True, kw_only=True)
class Arguments(MeasuringOptions, SourceOptions):
    """Options of the command."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Images: an image folder, parquet files, tars, `photos`, `cifar10`, or ADM's .npz with arr_0."""
    out: Path = Path()
    """File to write; its name must end in .safetensors."""
    split: Literal["train", "validation"] = "train"
    """Split of the data, if they have several."""


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(Arguments, argv, PROG, "Save a set's features and statistics, to compare samples with later.")
    if arguments.out.suffix != ".safetensors":
        raise UserError("--out must name a file that ends in .safetensors")
    arguments.check(arguments.data, mark='"fqgan"')
    from fqgan.engine.session import running

    with running(arguments.device) as world:
        from fqgan.base.files import make_folder
        from fqgan.engine.distributed import from_main
        from fqgan.evaluation.protocol import features_protocol
        from fqgan.evaluation.sets import open_set
        from fqgan.evaluation.statistics import save_statistics
        from fqgan.nets.measuring import load_network

        network = load_network(arguments.features, world.device)
        given = open_set(arguments.data, arguments.split, world.device, arguments)
        source = given.source
        if source is None or given.statistics is not None:
            raise UserError(f"{arguments.data} holds statistics already")
        size = from_main(lambda: size_of(arguments.size, given))
        features, side = features_of(given, network, arguments.reading(size), world, "reading", hashed=True)
        if world.is_main:
            made = features_protocol(network, size, arguments)
            make_folder(arguments.out.parent)
            save_statistics(features, {**made, "set": side}, arguments.out)
            say(f"{side['count']:,} images of {given.name} at {size} pixels, {network.dim} features of {network.name}")
            say(arguments.out)
