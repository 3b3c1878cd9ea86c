"""A tokenizer's reconstructions of images: per pixel, perceptually, as a set (rFID), and the codes that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fqgan.base.progress import image_bar
from fqgan.config import SourceOptions
from fqgan.config.evaluation import TokenizerEvaluation
from fqgan.data.sources import announce, open_source
from fqgan.engine.distributed import World, from_main
from fqgan.evaluation.collect import CentreCrops, FeatureCollector, LeftUnmeasured
from fqgan.evaluation.protocol import Evaluation, Rows, features_protocol, full_protocol
from fqgan.evaluation.scores import compare_features, rows_of
from fqgan.evaluation.sets import content_of, describe
from fqgan.nets.measuring import load_network
from fqgan.nets.perceptual import load_perceptual
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.validation import Scores, score_reconstructions


def evaluate_tokenizer(settings: TokenizerEvaluation, world: World) -> Evaluation:
    """All metrics of a tokenizer on a set of images; called by all ranks.

    Returns:
        `metrics`: `psnr` and `psnr_pooled` (dB), `ssim`, `perceptual`, `bits_per_position`, and those of
        `fqgan.evaluation.scores.set_scores`. Its content has each codebook's use under `factors` and each class's
        scores under `classes`.

    Raises:
        UserError: no such model, data or network; sizes that do not fit; not one picture that can be read.
    """
    device = world.device
    tokenizer = load_tokenizer(settings.checkpoint, device, settings.weights, settings.precision)
    size = settings.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    source = open_source(settings.data, settings.split, SourceOptions.of(settings))
    if world.is_main:
        announce(source, size)
    perceptual = load_perceptual(settings.perceptual)
    network = load_network(settings.features, device)
    reading = CentreCrops(settings, size)
    indices = reading.indices(source)
    real, fake = (FeatureCollector(network, indices, settings.kept, device) for _ in range(2))
    distance = perceptual.to(device) if perceptual else None
    scores = Scores(device, distance, source.classes, (real.update, fake.update))
    batches = reading.batches(source, world)

    def shown() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        with image_bar("evaluating", -(-len(indices) // world.size), shown=world.is_main) as advance:
            for batch in batches:
                yield batch
                advance(len(batch[0]))

    numbers = score_reconstructions(tokenizer, shown(), scores, device)
    left_out = LeftUnmeasured.of(batches, source, world)
    originals, copies = real.compute(), fake.compute()
    of_sets, warnings = compare_features(originals, copies, network, world)
    made = {**features_protocol(network, size, settings), "perceptual": settings.perceptual}
    made["precision"] = settings.precision
    data = describe(source, indices, left_out)
    data["content"] = from_main(lambda: content_of(source))
    if not world.is_main:
        return Evaluation()
    factors = numbers.pop("factors")
    classes = numbers.pop("classes", {})
    bits = {"bits_per_position": sum(factor["bits"] for factor in factors.values())} if factors else {}
    result = {
        "subject": "tokenizer",
        "checkpoint": str(settings.checkpoint),
        "data": settings.data,
        "images": data["count"],
        "unreadable": left_out.unreadable,
        "understood": source.explain(size),
        "metrics": {**numbers, **of_sets, **bits},
        "factors": factors,
        **({"classes": classes} if classes else {}),
        "protocol": full_protocol(made, settings.kept, device.type, data=data),
    }
    return Evaluation(result, _heading(result), _rows(result), warnings)


def _heading(result: dict[str, Any]) -> str:
    """Of the table."""
    protocol = result["protocol"]
    head = f"{result['checkpoint']} on {result['images']} images of {result['data']} at {protocol['size']} pixels"
    data = protocol["data"]
    words = {"unreadable": "more cannot be read", "skipped": "below the size skipped", "enlarged": "of them enlarged"}
    if said := [f"{data[key]} {text}" for key, text in words.items() if data[key]]:
        head += f" ({', '.join(said)})"
    return head


def _rows(result: dict[str, Any]) -> Rows:
    """Of the table."""
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
    if "bits_per_position" in numbers:
        rows.append(("all factors, at most", f"{numbers['bits_per_position']:.2f} bits a position"))
    else:
        rows.append(("codes", "none: it encodes to latents"))
    return rows
