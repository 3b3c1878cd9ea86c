"""`fqgan data info SOURCE` and `fqgan data pack SOURCE --out DIR`."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError, make_folder, write_text
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.base.progress import image_bar, readable_bytes
from fqgan.base.schema import did_you_mean
from fqgan.commands.arguments import parse
from fqgan.config import SourceOptions
from fqgan.config.ranges import at_least

if TYPE_CHECKING:
    from fqgan.data.pack import Packer
    from fqgan.data.sources import ImageSource

PROG = "fqgan data"
LISTED = 12
"""Classes and unreadable pictures that are shown one by one."""


@dataclass(frozen=True, kw_only=True)
class InfoArguments(SourceOptions):
    """Options of `info`."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Images: `photos`, `cifar10`, a folder, a list, parquet or Arrow files, tars, .zip or
    .npz."""
    split: Literal["train", "validation"] = "train"
    """Which one, where the source holds several."""
    scan: int = 1000
    """Evenly spaced pictures to look at; 0: all."""
    decode: bool = False
    """Decode these pictures. Slower, but their headers alone do not show that files are cut short."""
    size: tuple[int, ...] = (256,)
    """Pixels: counts the pictures whose shorter side is below each of these."""
    workers: int = 2
    """Reading processes."""
    json: Path = Path()
    """Write the numbers to this file, too; by default to none."""


@dataclass(frozen=True, kw_only=True)
class PackArguments(SourceOptions):
    """Options of `pack`."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Images: `photos`, `cifar10`, a folder, a list, parquet or Arrow files, tars, .zip or
    .npz."""
    out: Path
    """Folder for the parquet files; several splits may share one. The same command resumes."""
    split: Literal["train", "validation"] = "train"
    """Which one, where the source holds several; the files are named after it."""
    size: int = 256
    """Pixels to which a larger shorter side is reduced, with the filter of training. Nothing is enlarged."""
    crop_min: float = 0.0
    """The data.crop_min of the training to come. Its random crops resize the shorter side to up to size / crop_min
    first, so this many pixels are kept, 1.6 times as many at 0.8. 0: `size` are kept, from which such crops are
    enlarged, a little less sharp; right for validation, as centre crops are then those of the originals."""
    format: Literal["jpeg", "png", "webp-lossless"] = "jpeg"
    """Pictures that need no resizing and have this format already keep their bytes."""
    quality: int = 95
    """Of JPEG, 1 to 100; colours keep their full resolution."""
    rows_per_shard: int = 10_000
    """Pictures of a file at most."""
    shards: int = 0
    """Number of files; 0: from --rows-per-shard."""
    shuffle: bool = True
    """Mix the pictures once and for all, where the source can be read in any order (a folder). Training shuffles within
    data.window blocks of 256 rows only, which in a set sorted by class are few classes."""
    workers: int = 4
    """Processes that resize; 0: none but this one. The bytes do not depend on it."""
    max_unreadable: float = 0.01
    """Share of pictures that may be unreadable: each is named in a warning and left out; more than that (and more than
    ten) end the packing. 0: the first one does."""


def main(argv: list[str]) -> None:
    """Entry point."""
    commands = {"info": _info, "pack": _pack}
    if argv and argv[0] in commands:
        commands[argv[0]](argv[1:])
    elif {"-h", "--help"} & set(argv):
        print(
            f"usage: {PROG} info SOURCE\n       {PROG} pack SOURCE --out DIR\n\n"
            f"{PROG} info --help and {PROG} pack --help say more."
        )
    else:
        found = f"unknown {argv[0]!r}{did_you_mean(argv[0], commands)}" if argv else "say what to do"
        raise UserError(f"{found}: {PROG} info SOURCE, or {PROG} pack SOURCE --out DIR")


def _info(argv: list[str]) -> None:
    arguments = parse(InfoArguments, argv, f"{PROG} info", "Classes, sizes and formats of a set of images.")
    at_least(0, scan=arguments.scan, workers=arguments.workers)
    at_least(1, size=min(arguments.size, default=1))
    if arguments.json != Path():
        check_output(arguments.json, folder=False, option="--json", inputs=[arguments.source], mark='"scanned"')
    from rich import print as show

    from fqgan.data.sources import open_source
    from fqgan.data.survey import survey

    source = open_source(arguments.source, arguments.split, SourceOptions.of(arguments))
    say(source.summary(max(arguments.size, default=0)))
    with image_bar("reading", min(arguments.scan or len(source), len(source))) as advance:
        numbers = survey(
            source,
            scan=arguments.scan,
            decode=arguments.decode,
            sizes=sorted({256, *arguments.size}),
            workers=arguments.workers,
            advance=advance,
        )
    show(table(numbers))
    for warning in source.findings.warnings:
        say(f"warning: {warning}")
    problems = numbers["unreadable"]
    for problem in problems[:LISTED]:
        say(f"unreadable: {problem}")
    if len(problems) > LISTED:
        say(f"and {len(problems) - LISTED:,} more (--json names them all)")
    if arguments.json != Path():
        make_folder(arguments.json.parent)
        write_text(arguments.json, json.dumps(numbers, indent=2) + "\n")
        say(arguments.json)


def table(numbers: dict[str, Any]) -> Any:
    """The numbers as a rich table."""
    from rich.table import Table
    from rich.text import Text

    found = numbers["understood"]
    rows = {
        "form": numbers["kind"],
        "split": f"{found['split']}, chosen by {found['split_rule']}" if found["split"] else "",
        "pictures": f"{numbers['pictures']:,}" + (f", from {found['pictures_from']}" if found["pictures_from"] else ""),
        "classes": _classes(numbers),
        "labels": _labels(numbers),
        "labels from": found["labels_from"] if numbers["labels"] else "",
        "captions from": found["captions_from"],
        "ignored": _counts(found["ignored"]),
        "joined": f"{found['merged']:,} samples whose members stand apart" if found["merged"] else "",
        "left out": f"{found['without_picture']:,} samples without a picture" if found["without_picture"] else "",
        "values": found["values"],
        "small pictures": {"enlarge": "are enlarged", "skip": "are skipped", "refuse": "are refused"}[found["small"]],
        "blocks": f"{numbers['blocks']['count']:,} of {_range(numbers['blocks'])} pictures",
        "looked at": f"{numbers['scanned']:,}, {'decoded' if numbers['decoded'] else 'their headers'}",
    }
    if numbers["width"]:
        rows |= {name.replace("_", " "): f"{_range(numbers[name])} px" for name in ("width", "height", "shorter_side")}
        readable = numbers["scanned"] - len(numbers["unreadable"])
        rows |= {f"below {size} px": f"{count:,} of {readable:,}" for size, count in numbers["below"].items()}
    rows |= {name: _counts(numbers[name]) for name in ("formats", "modes") if numbers[name]}
    if numbers["mean_bytes"]:
        total = numbers["mean_bytes"] * numbers["pictures"]
        rows["bytes a picture"] = f"{numbers['mean_bytes']:,} on average, about {readable_bytes(total)} in all"
    rows["unreadable"] = f"{len(numbers['unreadable']):,}"
    grid = Table(title=Text(numbers["source"]), show_header=False, title_justify="left")
    for name, value in rows.items():
        if value:
            grid.add_row(name, Text(value))
    return grid


def _classes(numbers: dict[str, Any]) -> str:
    counts = numbers["classes"]
    if not counts:
        return "none"
    shown = f"{len(counts):,}: "
    if len(counts) <= LISTED:
        return shown + _counts(counts)
    first = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:3])
    ranked = sorted(counts.items(), key=lambda item: item[1])
    (least, fewest), (most, largest) = ranked[0], ranked[-1]
    return f"{shown}{first}, ...; smallest {least} {fewest:,}, largest {most} {largest:,}"


def _labels(numbers: dict[str, Any]) -> str:
    if numbers["labels"] is None:
        return "none"
    low, high = numbers["labels"]
    without = f", {numbers['unlabelled']:,} pictures without" if numbers["unlabelled"] else ""
    return (f"{low} to {high}" if low < high else f"{low}") + without


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _range(spread: dict[str, float]) -> str:
    low, middle, high = spread["min"], spread["median"], spread["max"]
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {middle:,.0f})"


def _pack(argv: list[str]) -> None:
    arguments = parse(PackArguments, argv, f"{PROG} pack", "Resized pictures in parquet files, for fast training.")
    at_least(1, size=arguments.size, quality=arguments.quality, **{"rows-per-shard": arguments.rows_per_shard})
    at_least(0, shards=arguments.shards, workers=arguments.workers)
    if arguments.quality > 100:
        raise UserError(f"--quality must be at most 100, got {arguments.quality}")
    for name, value in (("crop-min", arguments.crop_min), ("max-unreadable", arguments.max_unreadable)):
        if not 0 <= value <= 1:
            raise UserError(f"--{name} must be between 0 and 1, got {value}")
    check_output(arguments.out, folder=True, inputs=[arguments.source])

    from fqgan.data.pack import Packer
    from fqgan.data.shards import PackOptions
    from fqgan.data.sources import announce, open_source

    source = open_source(arguments.source, arguments.split, SourceOptions.of(arguments))
    shards = min(arguments.shards or math.ceil(len(source) / arguments.rows_per_shard), len(source))
    options = PackOptions(
        split=arguments.split,
        size=arguments.size,
        crop_min=arguments.crop_min,
        format=arguments.format,
        quality=arguments.quality,
        shards=shards,
        shuffle=arguments.shuffle,
    )
    packer = Packer(source, arguments.out, options, workers=arguments.workers, max_unreadable=arguments.max_unreadable)
    began, before = time.monotonic(), packer.done
    announce(source, options.size)
    _announce(source, packer)
    try:
        with image_bar("packing", len(source), before) as advance:
            manifest = packer.run(advance, say)
    except KeyboardInterrupt:
        say(f"stopped with {len(packer.manifest.shards)} of {shards} files finished; the same command resumes")
        raise
    except UnwritableError as error:
        raise UserError(f"{error}; the same command resumes") from None
    seconds = time.monotonic() - began
    if packer.done > before:
        say(f"{packer.done - before:,} pictures in {seconds:.1f} s, {(packer.done - before) / seconds:.1f} images/s")
    left_out = f", {len(manifest.unreadable):,} unreadable ones left out" if manifest.unreadable else ""
    say(f"{manifest.rows:,} pictures in {shards:,} files, {readable_bytes(manifest.bytes)}{left_out}")
    if below := sum(shard.below_size for shard in manifest.shards):
        say(
            f"warning: {below:,} pictures have a shorter side below {options.size} pixels and stay as they are: "
            "training and measuring enlarge them, unless --small (in training --data.small) says skip or refuse"
        )
    say(arguments.out)


def _announce(source: ImageSource, packer: Packer) -> None:
    """What there is to do, and the space it takes."""
    if packer.manifest.complete:
        say(f"{packer.folder} is packed already")
        return
    place = next(parent for parent in (packer.folder, *packer.folder.absolute().parents) if parent.exists())
    free, needed = shutil.disk_usage(place).free, packer.bytes_needed
    rest = f", {packer.done:,} of them done" if packer.done else ""
    say(
        f"{len(source):,} pictures of {source.name}{rest}; about {readable_bytes(needed)} to write "
        f"({packer.bytes_each / 1e3:.1f} kB a picture), {readable_bytes(free)} free"
    )
    if needed > free:
        say("warning: that is more than there is room for")
