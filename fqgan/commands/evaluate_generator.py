"""`fqgan evaluate generator CHECKPOINT --data REFERENCE --num 50000`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.commands import generate
from fqgan.commands.arguments import parse
from fqgan.commands.evaluate_samples import compared
from fqgan.commands.measuring import MeasuringOptions, conclude, result_path, run_of
from fqgan.config.ranges import at_least
from fqgan.models import hub

PROG = "fqgan evaluate generator"


@dataclass(frozen=True, kw_only=True)
class Arguments(MeasuringOptions, generate.Arguments):
    """Options of the command."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A generator's run folder, one of its checkpoints, an exported generator, a released file, or hf:org/name."""
    data: str
    """Real images to compare with: anything that `fqgan evaluate samples` takes as a reference."""
    split: Literal["train", "validation"] = "train"
    """Split of the data to compare with, if they have several; ADM's protocol takes the training images."""
    num: int = 50_000
    """Number of pictures to generate."""
    labels: Literal["balanced", "uniform"] = "balanced"
    """Class of each picture. balanced: all classes in turn, again and again. uniform: a class drawn at random with the
    seed."""
    samples: Path = Path()
    """Folder for the generated pictures; by default `evaluation` in the run folder. The same command resumes."""
    out: Path = Path()
    """File for the results and their protocol; by default eval.json in the run folder."""
    batch: int = 32
    """Number of pictures that are generated or measured together."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache: bool = True
    """Keep the reference's features in a cache for the next time; a hash of the content identifies them."""


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "Generate pictures of all classes and compare them with real ones (ADM's protocol: 50,000, gFID)."
    arguments = parse(Arguments, argv, PROG, about)
    arguments.check(arguments.data, arguments.checkpoint)
    at_least(1, num=arguments.num)
    at_least(0, seed=arguments.seed)
    path = result_path(arguments.checkpoint, arguments.out)
    home = run_of(arguments.checkpoint)
    beside = home if home.is_dir() else path.parent
    folder = beside / "evaluation" if arguments.samples == Path() else arguments.samples
    check_output(folder, folder=True, option="--samples", inputs=[arguments.data])
    name = str(arguments.checkpoint)
    arguments = replace(arguments, checkpoint=hub.local(arguments.checkpoint))
    from fqgan.engine.session import running

    with running(arguments.device) as world:
        from fqgan.engine.distributed import from_main
        from fqgan.evaluation.sets import check_fit, open_set
        from fqgan.nets.measuring import load_network

        from_main(lambda: generate.check_ranks(arguments.num, world.size))
        generator = generate.load(arguments, world)
        # what may be refused comes before hours of generation
        network = load_network(arguments.features, world.device)
        reference = open_set(arguments.data, arguments.split, world.device, arguments)
        size = arguments.size or generator.tokenizer.config.image_size
        from_main(lambda: check_fit(reference, network, size))
        settings = from_main(lambda: generate.settings_of(arguments, generator, world))
        if arguments.labels == "uniform":
            settings = replace(settings, classes=_uniform(settings.classes, arguments.num, arguments.seed))
        try:
            generate.make(generator, settings, folder, name, arguments.npz, world)
        except UnwritableError as error:
            raise UserError(f"{error}; the same command goes on") from None
        arguments = replace(arguments, size=size)
        result, text, warnings = compared(reference, open_set(str(folder)), network, arguments, world, arguments.cache)
        if world.is_main:
            say(folder)
            models = {"checkpoint": name, "generator": settings.generator}
            result["protocol"]["samples"]["draw"] = arguments.labels
            conclude({"subject": "generator", **models, **result}, text, warnings, path)


def _uniform(classes: tuple[int, ...], num: int, seed: int) -> tuple[int, ...]:
    """The class of each of `num` pictures."""
    import numpy as np

    return tuple(np.random.default_rng(seed).choice(classes, num).tolist())
