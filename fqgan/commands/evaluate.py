"""`fqgan evaluate tokenizer CKPT --data ...`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fqgan.commands.arguments import at_least, check_output, parse
from fqgan.commands.progress import image_bar
from fqgan.errors import UserError
from fqgan.files import make_folder, write_text
from fqgan.schema import did_you_mean

PROG = "fqgan evaluate tokenizer"
SUBJECTS = ("tokenizer",)


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name."""
    data: str
    """Images: `photos` (held-out regions), `cifar10` (test split), a folder, parquet files or tars."""
    out: Path = Path()
    """Where to write the numbers; by default eval.json in the checkpoint's run folder."""
    size: int = 0
    """Pixels a side of the centre crop; 0: the size that the tokenizer was trained on."""
    batch: int = 32
    """Images at a time."""
    limit: int = 0
    """Evaluate that many images, evenly spread; 0: all."""
    workers: int = 2
    """Loader processes."""
    upscale: bool = False
    """Enlarge images whose shorter side is below the size; otherwise they are refused."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: about twice as fast where the hardware has it; some codes change. Quantizers stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def main(argv: list[str]) -> None:
    """Entry point."""
    if not argv or argv[0] not in SUBJECTS:
        if {"-h", "--help"} & set(argv):
            print(
                "usage: fqgan evaluate tokenizer CHECKPOINT --data DATA\n\nfqgan evaluate tokenizer --help says more."
            )
            return
        found = f"cannot evaluate {argv[0]!r}{did_you_mean(argv[0], SUBJECTS)}" if argv else "name what to evaluate"
        raise UserError(f"{found}: {PROG} CHECKPOINT --data DATA")
    arguments = parse(Arguments, argv[1:], PROG, "Reconstruction metrics and codebook use of a tokenizer.")
    at_least(1, batch=arguments.batch)
    at_least(0, size=arguments.size, limit=arguments.limit, workers=arguments.workers)
    if arguments.out != Path():
        check_output(arguments.out, folder=False)
    elif arguments.checkpoint.is_file() or str(arguments.checkpoint).startswith("hf:"):
        raise UserError(f"--out is missing: {arguments.checkpoint} is no folder that eval.json could be written into")
    numbers = evaluate(arguments)
    print(table(numbers))
    print(_write(numbers, arguments))


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """All metrics of a tokenizer on a data set."""
    from fqgan.checkpoints import load_tokenizer
    from fqgan.data.images import open_source
    from fqgan.data.loader import evaluation_batches
    from fqgan.engine.allocator import keep_freed_memory
    from fqgan.engine.distributed import pick_device
    from fqgan.tokenizer.evaluation import Scores, evaluate_tokenizer
    from fqgan.vision.efficientnet import load_efficientnet_lite0
    from fqgan.vision.perceptual import load_perceptual

    keep_freed_memory()
    device = pick_device(arguments.device)
    tokenizer = load_tokenizer(arguments.checkpoint, device, arguments.weights, arguments.precision)
    size = arguments.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    source = open_source(arguments.data, "validation")
    perceptual = load_perceptual("efficientnet-lite0")
    assert perceptual is not None
    scores = Scores(device, perceptual.to(device), load_efficientnet_lite0().to(device), source.classes)
    batches = evaluation_batches(
        source,
        size=size,
        batch=arguments.batch,
        limit=arguments.limit,
        workers=arguments.workers,
        upscale=arguments.upscale,
    )
    images = min(arguments.limit or len(source), len(source))
    numbers = evaluate_tokenizer(tokenizer, progress(batches, images), scores, device)
    return {
        "checkpoint": str(arguments.checkpoint),
        "data": arguments.data,
        "precision": arguments.precision,
        "size": size,
        "images": images - batches.unreadable,
        "unreadable": batches.unreadable,
        **numbers,
    }


def progress(batches: Any, images: int) -> Any:
    """The batches, with a bar that counts images."""
    with image_bar("evaluating", images) as advance:
        for batch in batches:
            yield batch
            advance(len(batch[0]))


def table(numbers: dict[str, Any]) -> str:
    """The numbers as aligned text."""
    rows = [
        ("PSNR (mean over images)", f"{numbers['psnr']:.2f} dB"),
        ("PSNR (pooled over pixels)", f"{numbers['psnr_pooled']:.2f} dB"),
        ("SSIM", f"{numbers['ssim']:.4f}"),
        ("perceptual distance (EfficientNet-Lite0)", f"{numbers['perceptual']:.4f}"),
        ("Frechet distance (EfficientNet-Lite0, not FID)", f"{numbers['frechet_efficientnet']:.1f}"),
    ]
    for name, use in numbers["factors"].items():
        values = f"usage {use['usage']:.1%}, perplexity {use['perplexity']:.1f}, {use['bits']:.2f} bits a position"
        rows.append((f"factor {name}", values))
    width = max(len(name) for name, _ in rows)
    head = f"{numbers['checkpoint']} on {numbers['images']} images of {numbers['data']} at {numbers['size']} pixels"
    if numbers["unreadable"]:
        head += f" ({numbers['unreadable']} more cannot be read)"
    return "\n".join([head, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _write(numbers: dict[str, Any], arguments: Arguments) -> Path:
    folder = arguments.checkpoint
    if folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    path = folder / "eval.json" if arguments.out == Path() else arguments.out
    make_folder(path.parent)
    write_text(path, json.dumps(finite(numbers), indent=2) + "\n")
    return path


def finite(value: Any) -> Any:
    """JSON knows no infinity: null instead."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
