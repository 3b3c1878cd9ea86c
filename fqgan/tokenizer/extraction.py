"""A data set's images -> codes in a token store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError
from fqgan.base.printing import say
from fqgan.base.progress import image_bar, readable_bytes
from fqgan.config import SourceOptions
from fqgan.config.verbs import ExtractionSettings
from fqgan.data.fingerprint import data_fingerprint
from fqgan.data.loader import CropSet, check_ranks
from fqgan.data.sources import ImageSource, announce, open_source
from fqgan.data.token_manifest import LeftOut, StoreManifest, StoreOptions
from fqgan.data.token_writer import TokenWriter, images_per_shard
from fqgan.data.transforms import NUM_CROPS
from fqgan.data.unreadable import Omissions
from fqgan.data.workers import load
from fqgan.engine.distributed import World, barrier, from_main
from fqgan.engine.sizes import check_pictures
from fqgan.engine.stops import Stop, stop_requests
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.passes import Passes, exact_convolutions
from fqgan.tokenizer.protocol import Tokenizer, needed_codes

_CPU_PIXELS, _GPU_PIXELS = 1 << 17, 1 << 21
"""Pixels that go through the tokenizer together, unless a number of crops is asked for: 32 crops of 64 pixels on a CPU,
where each thread has a pass of its own; 32 of 256 pixels on a GPU."""


@dataclass(frozen=True)
class Extraction:
    """A finished token store."""

    out: Path
    """Its folder (`fqgan.data.tokens.TokenStore.open` reads it)."""
    manifest: StoreManifest
    """What is in it."""
    encoded: int
    """Images of the data that were gone through this time, by all ranks; 0 where the store was there already."""
    seconds: float
    """That this took."""

    @property
    def images(self) -> int:
        """Images in the store, with `manifest.num_crops` crops each."""
        return self.manifest.count

    @property
    def unreadable(self) -> list[LeftOut]:
        """Images that were left out."""
        return self.manifest.unreadable

    @property
    def summary(self) -> str:
        """How fast it went, where anything was encoded, and what is in the store: a line each."""
        manifest = self.manifest
        crops = self.images * manifest.num_crops
        left_out = f", {len(self.unreadable):,} unreadable ones left out" if self.unreadable else ""
        size = readable_bytes(sum(file.bytes for shard in manifest.shards for file in (shard.codes, shard.labels)))
        codes = " x ".join(map(str, (manifest.num_factors, *manifest.options.grid)))
        stored = f"{self.images:,} images{left_out}, {crops:,} crops of {codes} codes: {size}"
        stored += f" in {len(manifest.shards):,} shards"
        if not self.encoded:
            return stored
        rate = self.encoded / self.seconds
        speed = f"{rate:.1f} images/s, {rate * manifest.num_crops:.1f} crops/s"
        return f"{self.encoded:,} images in {self.seconds:.1f} s, {speed}\n{stored}"


def extract(settings: ExtractionSettings, world: World, source: ImageSource | None = None) -> Extraction:
    """Encode a set of images into a token store, or go on with one; called by all ranks.

    Args:
        source: is encoded in place of what the settings call data, where it is given.

    Raises:
        UserError: settings that make no sense or do not fit the tokenizer, data that cannot be read, a folder that
            holds something else or is in use, or one that cannot be written.
        SystemExit: after Ctrl-C or SIGTERM; the same call goes on.
    """
    settings.check()
    try:
        return _extract(settings, world, source)
    except UnwritableError as error:
        raise UserError(f"{error}; the same command resumes") from None


def _extract(settings: ExtractionSettings, world: World, given: ImageSource | None) -> Extraction:
    tokenizer = load_tokenizer(settings.checkpoint, world.device, settings.weights, settings.precision)
    needed_codes(tokenizer, settings.checkpoint)
    source = given or open_source(settings.data, settings.split, SourceOptions.of(settings))
    check_ranks(source, world.size)
    planned = _plan(tokenizer, source, settings, world.device)
    writer = TokenWriter(settings.out, planned, len(source))

    def begin() -> list[int]:
        announce(source, planned.options.image_size)
        missing = writer.begin(tokenizer.export, settings.verify, say)
        _announce(writer, missing, world)
        return missing

    try:
        missing = from_main(begin)
        began, own = time.monotonic(), missing[world.rank :: world.size]
        total, images = (sum(len(range(*writer.ranges[i])) for i in numbers) for numbers in (own, missing))
        with image_bar("encoding", total, shown=world.is_main) as advance:
            _encode(tokenizer, source, writer, own, settings, world, advance)
        barrier()
        manifest = from_main(lambda: writer.finish() if missing else writer.manifest)
    finally:
        writer.close(keep=world.size > 1)
    return Extraction(settings.out, manifest, images, time.monotonic() - began)


def _plan(
    tokenizer: Tokenizer, source: ImageSource, settings: ExtractionSettings, device: torch.device
) -> StoreManifest:
    """What a store of these codes will say of itself."""
    size = settings.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    side = size // tokenizer.config.downsampling
    sizes = tokenizer.codebook_sizes
    options = StoreOptions(
        tokenizer=tokenizer.fingerprint(),
        codebook_sizes=sizes,
        grid=(side, side),
        image_size=size,
        crops=settings.crops,
        crop_range=settings.crop_range or (1.1 if settings.crops == "ten" else 1.0),
        small=source.options.small,
        range=" ".join(source.options.range),
        precision=tokenizer.precision,
        device=device.type,
        crops_per_pass=settings.crops_per_pass or crops_per_pass(size, device),
        images_per_shard=settings.shard_images or images_per_shard(len(source), NUM_CROPS[settings.crops]),
    )
    check_pictures(options.crops_per_pass, size, tokenizer.config.map_channels, device)
    return StoreManifest(
        options,
        num_factors=len(sizes),
        num_crops=options.num_crops,
        weights=tokenizer.chosen,
        source=source.name,
        data=data_fingerprint(source),
        understood=source.explain(size),
        label_names=source.classes,
        num_classes=max(len(source.classes), int(source.labels.max()) + 1),
    )


def crops_per_pass(size: int, device: torch.device) -> int:
    """How many crops of `size` pixels go through the tokenizer together, where nothing else is asked for."""
    return max(1, (_CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS) // size**2)


def _encode(
    tokenizer: Tokenizer,
    source: ImageSource,
    writer: TokenWriter,
    numbers: list[int],
    settings: ExtractionSettings,
    world: World,
    advance: Callable[[int], None],
) -> None:
    """Encode the shards of these numbers, and call `advance` with how many images were done.

    Neither ranks nor batches nor workers nor threads change a code: shards are ranges of the data set, and within one
    the crops go through the tokenizer in passes of a fixed size, on a CPU each on one thread.

    Raises:
        UserError: too many pictures cannot be read, one is too small, or a worker process was killed.
        SystemExit: after Ctrl-C or SIGTERM, with the status that it stands for.
    """
    options = writer.manifest.options
    ranges = [range(*writer.ranges[number]) for number in numbers]
    keys = (chunk for span in ranges for chunk in _chunks(span, settings.batch))
    source.reserve(1)  # every block is read once, in order
    reader = CropSet(source, options.image_size, options.crops, options.crop_range)
    omissions = Omissions(source.name, len(source), settings.max_unreadable, writer.folder / "manifest.json")
    batches = load(reader.read, keys, settings.workers, pin_memory=False)
    try:
        with (
            exact_convolutions(),
            stop_requests() as stop,
            Passes(tokenizer, world.device, options.crops_per_pass) as passes,
        ):
            for number, span in zip(numbers, ranges, strict=True):
                kept: list[int] = []
                unreadable: list[LeftOut] = []
                for chunk, (crops, problems) in zip(_chunks(span, settings.batch), batches, strict=False):
                    _check(stop, writer)
                    for index, problem in zip(chunk, problems, strict=True):
                        if problem:
                            omissions.add(problem, say)
                            unreadable.append(LeftOut(index, problem))
                    good = [i for i, problem in enumerate(problems) if not problem]
                    passes.add(crops[good].flatten(0, 1))
                    kept += [chunk[i] for i in good]
                    advance(len(chunk))
                codes = passes.finish().reshape(options.shape(len(kept)))
                writer.write(number, codes, source.labels[kept], unreadable)
    finally:
        batches.close()


def _chunks(span: range, length: int) -> Iterator[list[int]]:
    return (list(span[i : i + length]) for i in range(0, len(span), length))


def _check(stop: Stop, writer: TokenWriter) -> None:
    if stop.number:
        done = len(writer.records())
        say(f"stopped with {done} of {len(writer.ranges)} shards finished; the same command resumes")
        raise SystemExit(128 + stop.number)


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
