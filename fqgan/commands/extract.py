"""`fqgan extract CKPT --data ... --out STORE`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.base.progress import image_bar, readable_bytes
from fqgan.commands.arguments import parse
from fqgan.config import SourceOptions
from fqgan.config.ranges import at_least
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.data.sources import ImageSource
    from fqgan.data.token_writer import TokenWriter
    from fqgan.engine.distributed import World

PROG = "fqgan extract"


@dataclass(frozen=True, kw_only=True)
class Arguments(SourceOptions):
    """Options of the command."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name."""
    data: str
    """Images: `photos`, `cifar10`, a folder, parquet files or tars."""
    out: Path
    """Folder of the token store; the same command resumes."""
    split: Literal["train", "validation"] = "train"
    """Which one, where the data hold several."""
    crops: Literal["center", "flip", "ten"] = "center"
    """Of each image: the centre; that and its mirror image; or top left, top right, bottom left, bottom right, centre,
    and the mirror images of these five in the same order."""
    crop_range: float = 0.0
    """The shorter side is resized to this times the size first; 0: 1.1 for ten crops (the paper's), else 1."""
    size: int = 0
    """Pixels a side of a crop; 0: the size that the tokenizer was trained on."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: about twice as fast where the hardware has it; some codes change. Quantizers stay in float32."""
    batch: int = 16
    """Images that a worker reads at a time. The codes do not depend on it."""
    workers: int = 2
    """Loader processes of each rank. The codes do not depend on it."""
    crops_per_pass: int = 0
    """Crops that go through the tokenizer together; 0: 131,072 pixels of them for each thread of a CPU, 2,097,152 on a
    GPU. The last bits of features depend on it, and so may a code in a million."""
    shard_images: int = 0
    """Images of a shard, which is what a kill may cost; 0: at least 1,024 crops, and at most 1,024 shards."""
    max_unreadable: float = 0.01
    """Share of images that may be unreadable: each is named in a warning and left out; more than that (and more than
    ten) end the extraction. 0: the first one does."""
    verify: bool = False
    """Check the sums of the shards that are there already, not only their sizes; damaged ones are made again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def main(argv: list[str], source: ImageSource | None = None) -> None:
    """Entry point; `source` is encoded in place of what --data names, where it is given."""
    arguments = parse(Arguments, argv, PROG, "Encode a set of images into a token store.")
    at_least(1, batch=arguments.batch)
    at_least(0, size=arguments.size, workers=arguments.workers)
    at_least(0, **{"crops-per-pass": arguments.crops_per_pass, "shard-images": arguments.shard_images})
    if not 0 <= arguments.max_unreadable <= 1:
        raise UserError(f"--max-unreadable must be between 0 and 1, got {arguments.max_unreadable}")
    if arguments.crop_range and not 1 <= arguments.crop_range < float("inf"):
        raise UserError(f"--crop-range must be at least 1, got {arguments.crop_range}")
    check_output(arguments.out, folder=True, inputs=[arguments.data, arguments.checkpoint])
    arguments = replace(arguments, checkpoint=hub.local(arguments.checkpoint))
    from fqgan.engine import distributed
    from fqgan.engine.allocator import keep_freed_memory

    keep_freed_memory()
    world = distributed.start(arguments.device)
    try:
        _extract(arguments, world, source)
    except UnwritableError as error:
        raise UserError(f"{error}; the same command goes on") from None
    finally:
        distributed.stop()


def _extract(arguments: Arguments, world: World, given: ImageSource | None) -> None:
    from fqgan.data.loader import check_ranks
    from fqgan.data.sources import announce, open_source
    from fqgan.data.token_writer import TokenWriter
    from fqgan.engine.distributed import barrier, from_main
    from fqgan.models.find import find
    from fqgan.tokenizer.extraction import extract, plan
    from fqgan.tokenizer.model import load_tokenizer, save_tokenizer

    tokenizer = load_tokenizer(arguments.checkpoint, world.device, arguments.weights, arguments.precision)
    source = given or open_source(arguments.data, arguments.split, SourceOptions.of(arguments))
    check_ranks(source, world.size)
    manifest = plan(
        tokenizer,
        source,
        size=arguments.size or tokenizer.config.image_size,
        crops=arguments.crops,
        crop_range=arguments.crop_range or (1.1 if arguments.crops == "ten" else 1.0),
        weights=find(arguments.checkpoint, "tokenizer").choose(arguments.weights),
        device=world.device.type,
        crops_per_pass=arguments.crops_per_pass,
        shard_images=arguments.shard_images,
    )
    writer = TokenWriter(arguments.out, manifest, len(source))

    def begin() -> list[int]:
        announce(source, manifest.options.image_size)
        missing = writer.begin(lambda folder: save_tokenizer(tokenizer, folder), arguments.verify, say)
        _announce(writer, missing, world)
        return missing

    try:
        missing = from_main(begin)
        began, own = time.monotonic(), missing[world.rank :: world.size]
        total, images = (sum(len(range(*writer.ranges[i])) for i in numbers) for numbers in (own, missing))
        with image_bar("encoding", total, shown=world.is_main) as advance:
            extract(
                tokenizer,
                source,
                writer,
                missing,
                world,
                batch=arguments.batch,
                workers=arguments.workers,
                max_unreadable=arguments.max_unreadable,
                advance=advance,
                note=say,
            )
        barrier()
        if missing:
            from_main(writer.finish)
    finally:
        writer.close(keep=world.size > 1)
    if world.is_main:
        _summarize(writer, images, time.monotonic() - began)
        say(arguments.out)


def _announce(writer: TokenWriter, missing: list[int], world: World) -> None:
    """What there is to do."""
    manifest = writer.manifest
    if not missing:
        say(f"{writer.folder} is extracted already")
        return
    shards, options = len(writer.ranges), manifest.options
    done = f", {shards - len(missing):,} of them done" if len(missing) < shards else ""
    crops = "1 crop" if options.num_crops == 1 else f"{options.num_crops} crops"
    say(
        f"{writer.images:,} images of {manifest.source} with {crops} each in {shards:,} shards{done}; "
        f"tokenizer {options.tokenizer[:12]} ({manifest.weights} weights, {options.precision}) on "
        f"{world.size} x {options.device}"
    )
    if len(missing) < world.size:
        idle = f"{world.size - len(missing)} of {world.size} ranks have nothing to do"
        say(f"warning: {idle}: a new store with fewer --shard-images has more shards")


def _summarize(writer: TokenWriter, images: int, seconds: float) -> None:
    manifest = writer.manifest
    options, crops = manifest.options, manifest.count * manifest.num_crops
    if images:
        rate = f"{images / seconds:.1f} images/s, {images * options.num_crops / seconds:.1f} crops/s"
        say(f"{images:,} images in {seconds:.1f} s, {rate}")
    left_out = f", {len(manifest.unreadable):,} unreadable ones left out" if manifest.unreadable else ""
    size = readable_bytes(sum(file.bytes for shard in manifest.shards for file in (shard.codes, shard.labels)))
    h, w = options.grid
    say(
        f"{manifest.count:,} images{left_out}, {crops:,} crops of {manifest.num_factors} x {h} x {w} codes: {size} in "
        f"{len(manifest.shards):,} shards"
    )
