"""`fqgan evaluate tokenizer CHECKPOINT --data ...`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fqgan.base.progress import image_bar
from fqgan.commands.arguments import parse
from fqgan.commands.measuring import MeasuringOptions, conclude, result_path, scores_of
from fqgan.config import SourceOptions
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.engine.distributed import World

PROG = "fqgan evaluate tokenizer"


@dataclass(frozen=True, kw_only=True)
class Arguments(MeasuringOptions, SourceOptions):
    """Options of the command."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name."""
    data: str
    """Images: `photos` (held-out regions), `cifar10` (test split), a folder, parquet files or tars."""
    split: Literal["train", "validation"] = "validation"
    """Split of the data, if they have several."""
    perceptual: Literal["efficientnet-lite0", "lpips-vgg", "none"] = "efficientnet-lite0"
    """Perceptual distance: LPIPS, or the distance on the packaged EfficientNet's stages, which needs no download."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the tokenizer. bf16 is about twice as fast if the hardware supports it, and changes some codes.
    Quantizers stay in float32."""


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "How well a tokenizer reproduces images: per pixel, perceptually, as a set (rFID), and the codes it uses."
    arguments = parse(Arguments, argv, PROG, about)
    arguments.check(arguments.data, arguments.checkpoint)
    path = result_path(arguments.checkpoint, arguments.out)
    checkpoint = hub.local(arguments.checkpoint)
    from fqgan.engine.session import running

    with running(arguments.device) as world:
        result, warnings = evaluate(replace(arguments, checkpoint=checkpoint), world)
        result["checkpoint"] = str(arguments.checkpoint)
        if world.is_main:
            conclude(result, _table(result), warnings, path)


def evaluate(arguments: Arguments, world: World) -> tuple[dict[str, Any], list[str]]:
    """All metrics of a tokenizer on a data set, and warnings; called by all ranks, of use on the main one."""
    from fqgan.data.loader import evaluation_batches
    from fqgan.data.sources import announce, open_source
    from fqgan.engine.distributed import from_main
    from fqgan.evaluation.collect import FeatureCollector, LeftOut
    from fqgan.evaluation.protocol import features_protocol, full_protocol
    from fqgan.evaluation.sets import content_of, describe
    from fqgan.nets.measuring import load_network
    from fqgan.nets.perceptual import load_perceptual
    from fqgan.tokenizer.model import load_tokenizer
    from fqgan.tokenizer.validation import Scores, evaluate_tokenizer

    device = world.device
    tokenizer = load_tokenizer(arguments.checkpoint, device, arguments.weights, arguments.precision)
    size = arguments.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    source = open_source(arguments.data, arguments.split, SourceOptions.of(arguments))
    if world.is_main:
        announce(source, size)
    perceptual = load_perceptual(arguments.perceptual)
    network = load_network(arguments.features, device)
    reading = arguments.reading(size)
    indices = reading.indices(source)
    real, fake = (FeatureCollector(network, indices, reading.kept, device) for _ in range(2))
    scores = Scores(
        device, perceptual.to(device) if perceptual else None, None, source.classes, (real.update, fake.update)
    )
    batches = evaluation_batches(
        source,
        size=size,
        batch=reading.batch,
        limit=reading.limit,
        workers=reading.workers,
        rank=world.rank,
        world=world.size,
    )

    def shown() -> Any:
        with image_bar("evaluating", -(-len(indices) // world.size), shown=world.is_main) as advance:
            for batch in batches:
                yield batch
                advance(len(batch[0]))

    numbers = evaluate_tokenizer(tokenizer, shown(), scores, device)
    left_out = LeftOut.of(batches, source, world)
    originals, copies = real.compute(), fake.compute()
    of_sets, warnings = scores_of(originals, copies, network, world)
    made = {**features_protocol(network, size, arguments), "perceptual": arguments.perceptual}
    made["precision"] = arguments.precision
    data = describe(source, indices, left_out)
    data["content"] = from_main(lambda: content_of(source))
    factors = numbers.pop("factors")
    classes = numbers.pop("classes", {})
    bits = sum(factor["bits"] for factor in factors.values())
    result = {
        "subject": "tokenizer",
        "checkpoint": str(arguments.checkpoint),
        "data": arguments.data,
        "images": data["count"],
        "unreadable": left_out.unreadable,
        "understood": source.explain(size),
        "metrics": {**numbers, **of_sets, "bits_per_position": bits},
        "factors": factors,
        **({"classes": classes} if classes else {}),
        "protocol": full_protocol(made, arguments.kept, device.type, data=data),
    }
    return result, warnings


def _table(result: dict[str, Any]) -> str:
    from fqgan.evaluation.scores import rows_of, table

    numbers, protocol = result["metrics"], result["protocol"]
    rows = [
        ("PSNR (mean over images)", f"{numbers['psnr']:.2f} dB"),
        ("PSNR (pooled over pixels)", f"{numbers['psnr_pooled']:.2f} dB"),
        ("SSIM", f"{numbers['ssim']:.4f}"),
    ]
    if "perceptual" in numbers:
        name = {"lpips-vgg": "LPIPS (VGG)"}.get(protocol["perceptual"], "perceptual distance (EfficientNet-Lite0)")
        rows.append((name, f"{numbers['perceptual']:.4f}"))
    rows += rows_of(numbers, protocol["features"]["network"], reconstruction=True)
    for name, use in result["factors"].items():
        values = f"usage {use['usage']:.1%}, perplexity {use['perplexity']:.1f}, {use['bits']:.2f} bits a position"
        rows.append((f"factor {name}", values))
    rows.append(("all factors, at most", f"{numbers['bits_per_position']:.2f} bits a position"))
    head = f"{result['checkpoint']} on {result['images']} images of {result['data']} at {protocol['size']} pixels"
    data = protocol["data"]
    words = {"unreadable": "more cannot be read", "skipped": "below the size skipped", "enlarged": "of them enlarged"}
    if said := [f"{data[key]} {text}" for key, text in words.items() if data[key]]:
        head += f" ({', '.join(said)})"
    return table(head, rows)
