"""Pictures by class from a generator."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fqgan.base.classes import drawn_classes
from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config import SamplingConfig
from fqgan.config.verbs import Drawing, GenerationSettings
from fqgan.data.fingerprint import digest
from fqgan.engine.distributed import World, all_reduce_sum, barrier, from_main
from fqgan.generator.given import read_given, told
from fqgan.generator.model import FAR, load_generator
from fqgan.generator.samples import SampleFolder, SampleSettings
from fqgan.models.find import find
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.pictures import save_picture
from fqgan.tokenizer.protocol import own_grid

_DECODED = 64  # pictures at a time: a batch may be as large as its caches allow, which are smaller than feature maps


@dataclass(frozen=True)
class Generated:
    """A finished folder of pictures."""

    out: Path
    """Holds 000000.png and so on, grid.png, samples.json, and on request samples.npz."""
    settings: SampleSettings
    """What decided the pictures: fingerprints, each one's class, seed, sampling."""
    made: int
    """Pictures made this time, by all ranks; 0 where all were there already."""
    seconds: float
    """That this took."""


def generate(settings: GenerationSettings, world: World) -> Generated:
    """Generate pictures, or those that an interrupted call left out; called by all ranks.

    Raises:
        UserError: settings or given codes that make no sense or do not fit the generator, a folder that holds something
            else or is in use, or one that cannot be written.
    """
    settings.check()
    from_main(lambda: check_ranks(settings.num, world.size))
    generator = load(settings, world)
    if settings.head_rounds:
        generator.set_head_rounds(settings.head_rounds)
    planned = from_main(lambda: plan(settings, generator, world))
    given, model = None, generator.config
    grid = from_main(lambda: generator.check_grid(settings.grid or None))
    if grid != model.grid:
        planned = replace(planned, grid=grid)
    if settings.given:
        given = from_main(lambda: read_given(Path(settings.given), model.codebook_sizes, grid))
        planned = replace(planned, given=digest(given.numpy()))
    return make(generator, planned, settings.out, str(settings.checkpoint), settings.npz, world, given=given)


def load(options: Drawing, world: World) -> FAR:
    """The generator that the options name, with its tokenizer."""
    return load_generator(options.checkpoint, world.device, options.weights, options.precision, options.tokenizer)


def make(
    generator: FAR,
    settings: SampleSettings,
    out: Path,
    source: str,
    npz: bool,
    world: World,
    option: str = "--out",
    given: Tensor | None = None,
) -> Generated:
    """Generate what is not there yet of a folder of pictures, and finish it; called by all ranks.

    Args:
        source: where the generator comes from.
        npz: whether samples.npz is written too.
        option: that names the folder, for messages.
        given: codes (n, k, h, w) that stay, -1 where one is drawn: picture i takes those at index i modulo n.
    """
    height, width = (each * generator.tokenizer.config.downsampling for each in settings.grid or generator.config.grid)
    folder = SampleFolder(out, settings, (height, width), generator.label_names, source, option)
    try:
        there = from_main(folder.begin)
        if world.is_main:
            _announce(folder, there, world)
            if given is not None:
                say(told(given, [factor.name for factor in generator.tokenizer.config.factors], settings.num))
        began, own = time.monotonic(), 0
        pictures = sum(map(len, settings.share(world.rank, world.size)))
        with image_bar("generating", pictures, shown=world.is_main) as advance:
            missing = folder.missing(world.rank, world.size, skipped=advance)
            for count in _pictures(generator, folder, missing, given):
                own += count
                advance(count)
        made = int(all_reduce_sum(torch.tensor(own, device=world.device)))
        seconds = time.monotonic() - began
        if world.is_main:
            if made:
                say(f"{made:,} pictures in {seconds:.1f} s, {made / seconds:.2f} images/s")
            folder.finish(npz)
        barrier()
    except UnwritableError as error:
        raise UserError(f"{error}; the same command resumes") from None
    finally:
        folder.close()
    return Generated(out, settings, made, seconds)


def check_ranks(num: int, ranks: int) -> None:
    """`UserError` for more ranks than pictures."""
    if num < ranks:
        raise UserError(f"--num {num} is less than the {ranks} ranks: start no more than pictures")


def plan(options: Drawing, generator: FAR, world: World) -> SampleSettings:
    """What is to be made; `UserError` where it cannot be."""
    model, tokenizer = generator.config, generator.tokenizer
    grid = own_grid(tokenizer)
    bound = any(factor.adapter_depth for factor in tokenizer.config.factors)  # others have no table of positions
    if bound and not find(options.checkpoint, "generator").facts.get("tokenizer") and model.grid != grid:
        own, other = ("x".join(map(str, each)) for each in (model.grid, grid))
        raise UserError(f"the generator's token grid is {own}, the tokenizer's {other}: they don't belong together")
    sampling = SamplingConfig(**options.values)
    sampling.check(model.codebook_sizes)
    classes = drawn_classes(options.classes, model.num_classes, generator.label_names)
    return SampleSettings(
        generator=weights_fingerprint(generator.state_dict()),
        tokenizer=tokenizer.fingerprint(),
        classes=classes,
        num=options.num,
        seed=options.seed,
        batch=min(options.batch, options.num),
        precision=options.precision,
        device=world.device.type,
        sampling=sampling.resolved(conditional=classes != (-1,)),
        head_rounds=model.head_rounds,
    )


def _announce(folder: SampleFolder, done: int, world: World) -> None:
    settings = folder.settings
    count = len({label for label in settings.classes if label >= 0})
    classes = f"{count or 'no'} class" + "es" * (count > 1)
    known = f", {done:,} of them there already" if done else ""
    say(
        f"{settings.num:,} pictures of {classes}{known}; generator {settings.generator[:12]}, "
        f"tokenizer {settings.tokenizer[:12]}, {settings.precision} on {world.size} x {settings.device}"
    )


def _pictures(generator: FAR, folder: SampleFolder, batches: Iterable[range], given: Tensor | None) -> Iterator[int]:
    """Make the pictures of some batches; yields the number of every batch that is written.

    On CUDA a thread decodes and writes a batch while the next one is drawn. A CPU has nothing to gain from that: both
    want all cores. Nor has MPS, where all threads share one stream.
    """
    settings, sampler = folder.settings, None
    device = generator.class_embedding.weight.device
    # one for all batches: the memory that a stream has freed serves no other
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    behind: Future[int] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in batches:
            sampler = sampler or generator.sampler(
                settings.batch, grid=settings.grid or None, **settings.sampling.values
            )
            rows = None if given is None else given[[i % len(given) for i in batch]]
            mask = None if rows is None else rows >= 0
            codes = sampler(settings.labels(batch), settings.seed, batch.start, given=rows, mask=mask)
            if device.type != "cuda":
                yield _write(generator, folder, batch, codes, side)
                continue
            if behind is not None:
                yield behind.result()
            behind = pool.submit(_write, generator, folder, batch, codes.cpu(), side)
        if behind is not None:
            yield behind.result()


def _write(generator: FAR, folder: SampleFolder, batch: range, codes: Tensor, side: torch.cuda.Stream | None) -> int:
    """Decode and write one batch, on a GPU on the stream `side`."""
    with torch.inference_mode(), torch.cuda.stream(side):
        parts = [generator.tokenizer.decode(part, values=False).cpu() for part in codes.split(_DECODED)]
    images = torch.cat(parts)
    for picture, image in zip(batch, images, strict=True):
        save_picture(image, folder.path(picture))
    return len(batch)
