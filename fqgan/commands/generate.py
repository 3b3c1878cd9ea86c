"""`fqgan generate CKPT --classes 0,5,9 --num 64 --out DIR`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.base.schema import did_you_mean
from fqgan.commands.arguments import parse
from fqgan.config import SamplingConfig
from fqgan.config.ranges import at_least
from fqgan.models import hub

if TYPE_CHECKING:
    from torch import Tensor

    from fqgan.engine.distributed import World
    from fqgan.generator.model import FAR
    from fqgan.generator.samples import SampleFolder, SampleSettings

PROG = "fqgan generate"


@dataclass(frozen=True, kw_only=True)
class Arguments(SamplingConfig):
    """Options of the command."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A generator's run folder, one of its checkpoints, an exported generator, a released file, or hf:org/name."""
    out: Path = Path("samples")
    """Folder for the pictures, a grid of the first of them, and samples.json; the same command resumes."""
    classes: str = "all"
    """Class numbers or names, separated by commas; picture i is of the class at i modulo their number."""
    num: int = 64
    """Pictures in all."""
    seed: int = 0
    """Picture i is drawn from the random stream (seed, i)."""
    batch: int = 16
    """Pictures that are made together; a rank takes every so manieth batch."""
    npz: bool = False
    """Also write samples.npz, as ADM's evaluator reads it: arr_0 (n, H, W, 3) uint8, arr_1 the classes."""
    tokenizer: str = ""
    """The tokenizer that decodes; empty: the one that the generator carries."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: less than half the time where the hardware has it; other pictures of the same kind."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(Arguments, argv, PROG, "Generate pictures by class: a PNG each, a grid, ADM's .npz on request.")
    at_least(1, num=arguments.num, batch=arguments.batch)
    at_least(0, seed=arguments.seed)
    check_output(arguments.out, folder=True, inputs=[arguments.checkpoint, arguments.tokenizer])
    arguments = replace(arguments, checkpoint=hub.local(arguments.checkpoint))
    from fqgan.engine import distributed
    from fqgan.engine.allocator import keep_freed_memory

    keep_freed_memory()
    world = distributed.start(arguments.device)
    try:
        distributed.from_main(lambda: check_ranks(arguments.num, world.size))
        _generate(arguments, world)
    except UnwritableError as error:
        raise UserError(f"{error}; the same command goes on") from None
    finally:
        distributed.stop()


def chosen_classes(text: str, count: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """Class numbers of `all`, or of numbers and names separated by commas (a single name may hold commas itself).
    `UserError` for one that is unknown."""
    if text == "all":
        return tuple(range(count))
    if text in names:
        return (names.index(text),)
    chosen: list[int] = []
    for word in (part.strip() for part in text.split(",")):
        if word.isascii() and word.isdigit():
            if int(word) >= count:
                raise UserError(f"--classes: there is no class {word}, the generator has classes 0 to {count - 1}")
            chosen.append(int(word))
        elif word in names:
            chosen.append(names.index(word))
        elif names:
            raise UserError(f"--classes: unknown class {word!r}{did_you_mean(word, names)}")
        else:
            raise UserError(f"--classes: unknown class {word!r}: this generator's classes have numbers only, no names")
    return tuple(chosen)


def _generate(arguments: Arguments, world: World) -> None:
    from fqgan.engine.distributed import from_main

    generator = load(arguments, world)
    settings = from_main(lambda: settings_of(arguments, generator, world))
    make(generator, settings, arguments.out, str(arguments.checkpoint), arguments.npz, world)
    if world.is_main:
        say(arguments.out)


def load(arguments: Arguments, world: World) -> FAR:
    """The generator that the options name, with its tokenizer."""
    from fqgan.generator.model import load_generator

    return load_generator(
        arguments.checkpoint, world.device, arguments.weights, arguments.precision, arguments.tokenizer
    )


def make(generator: FAR, settings: SampleSettings, out: Path, source: str, npz: bool, world: World) -> None:
    """Generate what is not there yet of a folder of pictures, and finish it; called by all ranks.

    Args:
        source: where the generator comes from.
    """
    import torch

    from fqgan.engine.distributed import all_reduce_sum, barrier, from_main
    from fqgan.generator.samples import SampleFolder

    side = generator.config.grid[0] * generator.tokenizer.config.downsampling
    folder = SampleFolder(out, settings, side, generator.label_names, source)
    try:
        there = from_main(folder.begin)
        if world.is_main:
            _announce(folder, there, world)
        began, own = time.monotonic(), 0
        pictures = sum(map(len, settings.share(world.rank, world.size)))
        with image_bar("generating", pictures, shown=world.is_main) as advance:
            missing = folder.missing(world.rank, world.size, skipped=advance)
            for made in _pictures(generator, folder, missing):
                own += made
                advance(made)
        made = int(all_reduce_sum(torch.tensor(own, device=world.device)))
        if world.is_main:
            if made:
                seconds = time.monotonic() - began
                say(f"{made:,} pictures in {seconds:.1f} s, {made / seconds:.2f} images/s")
            folder.finish(npz)
        barrier()
    finally:
        folder.close()


def check_ranks(num: int, ranks: int) -> None:
    """`UserError` for more ranks than pictures."""
    if num < ranks:
        raise UserError(f"--num {num} is less than the {ranks} ranks: start no more than pictures")


def settings_of(arguments: Arguments, generator: FAR, world: World) -> SampleSettings:
    """What is to be made; `UserError` where it cannot be."""
    from fqgan.generator.samples import SampleSettings
    from fqgan.models.find import find
    from fqgan.models.fingerprint import fingerprint

    model, tokenizer = generator.config, generator.tokenizer
    grid = (tokenizer.config.grid, tokenizer.config.grid)
    if not find(arguments.checkpoint, "generator").facts.get("tokenizer") and model.grid != grid:
        own, other = ("x".join(map(str, each)) for each in (model.grid, grid))
        raise UserError(f"the generator's token grid is {own}, the tokenizer's {other}: they don't belong together")
    sampling = SamplingConfig(**{each.name: getattr(arguments, each.name) for each in fields(SamplingConfig)})
    sampling.check(model.codebook_sizes)
    return SampleSettings(
        generator=fingerprint(generator.state_dict()),
        tokenizer=tokenizer.fingerprint(),
        classes=chosen_classes(arguments.classes, model.num_classes, generator.label_names),
        num=arguments.num,
        seed=arguments.seed,
        batch=min(arguments.batch, arguments.num),
        precision=arguments.precision,
        device=world.device.type,
        sampling=sampling,
    )


def _announce(folder: SampleFolder, done: int, world: World) -> None:
    settings = folder.settings
    count = len(set(settings.classes))
    classes = f"{count} class" + "es" * (count > 1)
    told = f", {done:,} of them there already" if done else ""
    say(
        f"{settings.num:,} pictures of {classes}{told}; generator {settings.generator[:12]}, "
        f"tokenizer {settings.tokenizer[:12]}, {settings.precision} on {world.size} x {settings.device}"
    )


def _pictures(generator: FAR, folder: SampleFolder, batches: Iterable[range]) -> Iterator[int]:
    """Make the pictures of some batches; yields the number of every batch that is written.

    On a GPU a thread decodes and writes a batch while the next one is drawn. A CPU has nothing to gain from that: both
    want all cores.
    """
    settings, sampler = folder.settings, None
    behind: Future[int] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in batches:
            sampler = sampler or generator.sampler(settings.batch, **vars(settings.sampling))
            codes = sampler(settings.labels(batch), settings.seed, first_image=batch.start)
            if codes.device.type == "cpu":
                yield _write(generator, folder, batch, codes)
                continue
            if behind is not None:
                yield behind.result()
            behind = pool.submit(_write, generator, folder, batch, codes.cpu())
        if behind is not None:
            yield behind.result()


def _write(generator: FAR, folder: SampleFolder, batch: range, codes: Tensor) -> int:
    """Decode and write one batch, on a CUDA stream of its own."""
    import torch

    from fqgan.tokenizer.pictures import save_picture

    device = generator.class_embedding.weight.device
    side = torch.cuda.Stream(device) if device.type == "cuda" else None
    with torch.inference_mode(), torch.cuda.stream(side):
        images = generator.tokenizer.decode(codes.to(device), values=False).cpu()
    for picture, image in zip(batch, images, strict=True):
        save_picture(image, folder.path(picture))
    return len(batch)
