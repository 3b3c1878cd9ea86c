"""`fqgan evaluate samples REFERENCE SAMPLES`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.commands.measuring import RESULT, MeasuringOptions, conclude, features_of, scores_of, size_of
from fqgan.config import SourceOptions

if TYPE_CHECKING:
    from fqgan.engine.distributed import World
    from fqgan.evaluation.sets import Set
    from fqgan.nets.measuring import FeatureNetwork

PROG = "fqgan evaluate samples"


@dataclass(frozen=True, kw_only=True)
class Arguments(MeasuringOptions, SourceOptions):
    """Options of the command."""

    reference: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REFERENCE")]
    """Real images: an image folder, parquet files, tars, `photos`, `cifar10`, ADM's .npz (arr_0, or mu and sigma, or
    both), or a file that `fqgan evaluate statistics` wrote. The reference's features are cached under ~/.cache/fqgan or
    $FQGAN_CACHE."""
    samples: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAMPLES")]
    """Images to judge: anything that can be a reference, or a folder that `fqgan generate` wrote."""
    split: Literal["train", "validation"] = "train"
    """Split of the reference, if it has several."""
    samples_split: Literal["train", "validation"] = "validation"
    """Split of the samples, if they have several."""
    npz: Path = Path()
    """File to write the samples to, in the form that ADM's evaluator reads: arr_0 (n, H, W, 3) uint8, arr_1 the
    classes."""
    cache: bool = True
    """Keep the reference's features in a cache for the next time; a hash of the content identifies them."""


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(Arguments, argv, PROG, "Compare a set of images with a reference.")
    inputs = arguments.reference, arguments.samples
    arguments.check(*inputs)
    path = _out(arguments)
    if arguments.npz != Path():
        check_output(arguments.npz, folder=False, option="--npz", inputs=inputs, mark="arr_0")
    from fqgan.engine.session import running

    with running(arguments.device) as world:
        from fqgan.engine.distributed import from_main
        from fqgan.evaluation.sets import open_set
        from fqgan.nets.measuring import load_network

        network = load_network(arguments.features, world.device)
        reference = open_set(arguments.reference, arguments.split, world.device, arguments)
        samples = open_set(arguments.samples, arguments.samples_split, world.device, arguments)
        result, text, warnings = compared(reference, samples, network, arguments, world, arguments.cache)
        if world.is_main:
            conclude({"subject": "samples", **result}, text, warnings, path)
        if arguments.npz != Path():
            from_main(lambda: _write_npz(arguments, samples))


def compared(
    reference: Set, samples: Set, network: FeatureNetwork, arguments: MeasuringOptions, world: World, cache: bool
) -> tuple[dict[str, Any], str, list[str]]:
    """Result, table and warnings of two sets, on the main rank; called by all."""
    from fqgan.engine.distributed import from_main
    from fqgan.evaluation.protocol import features_protocol, full_protocol
    from fqgan.evaluation.scores import rows_of, table

    size = from_main(lambda: size_of(arguments.size, reference, samples))
    reading = arguments.reading(size)
    real, real_side = features_of(reference, network, reading, world, "reference", hashed=True, cache=cache)
    fake, fake_side = features_of(samples, network, reading, world, "samples")
    scores, warnings = scores_of(real, fake, network, world)
    made = features_protocol(network, size, arguments)
    protocol = full_protocol(made, arguments.kept, world.device.type, reference=real_side, samples=fake_side)
    if not world.is_main:
        return {}, "", []
    counts = [f"{side['count']:,} images" if "count" in side else "statistics" for side in (fake_side, real_side)]
    head = f"{samples.name} ({counts[0]}) against {reference.name} ({counts[1]})"
    head += f" at {size} pixels" if size else ""
    if not scores:
        raise UserError("the two sets have nothing in common that could be compared")
    sources = {"reference": reference.source, "samples": samples.source}
    result = {
        "reference": reference.name,
        "samples": samples.name,
        "understood": {name: source.explain(size) for name, source in sources.items() if source is not None},
        "metrics": scores,
        "protocol": protocol,
    }
    return result, table(head, rows_of(scores, network.name)), warnings


def _out(arguments: Arguments) -> Path:
    if arguments.out != Path():
        return arguments.out
    samples = Path(arguments.samples).expanduser()
    path = samples / "eval.json" if samples.is_dir() else Path("eval.json")
    check_output(path, folder=False, mark=RESULT)
    return path


def _write_npz(arguments: Arguments, samples: Set) -> None:
    import numpy as np

    from fqgan.base.files import make_folder
    from fqgan.base.progress import image_bar
    from fqgan.data.loader import evaluation_batches
    from fqgan.data.sources.npz import write_images

    if (source := samples.source) is None:
        raise UserError(f"--npz needs images, and {arguments.samples} holds statistics only")
    reading = arguments.reading(arguments.size or samples.size)
    indices = reading.indices(source)
    batches = evaluation_batches(
        source, size=reading.size, batch=reading.batch, limit=reading.limit, workers=reading.workers
    )
    make_folder(arguments.npz.parent)
    with image_bar("writing", len(indices)) as advance:

        def pictures() -> Any:
            for images, _, _ in batches:
                yield from images.permute(0, 2, 3, 1).contiguous().numpy()
                advance(len(images))
            if batches.unreadable:
                raise UserError(f"{batches.unreadable} samples cannot be read: no {arguments.npz} without them")

        shape = (len(indices), reading.size, reading.size, 3)
        write_images(arguments.npz, pictures(), shape, np.asarray(source.labels[indices]))
    say(arguments.npz)
