"""Any image source to resized pictures in parquet files."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError
from fqgan.base.printing import say
from fqgan.base.progress import image_bar, readable_bytes
from fqgan.config import SourceOptions
from fqgan.config.packing import PackSettings
from fqgan.data.packer import Packer
from fqgan.data.shards import Manifest, PackOptions
from fqgan.data.sources import ImageSource, announce, open_source


@dataclass(frozen=True)
class Packed:
    """A packed set that is finished."""

    out: Path
    """Folder of the parquet files."""
    manifest: Manifest
    """What is in them: pictures (`rows`), `shards`, `bytes`, and those left out (`unreadable`)."""
    packed: int
    """Pictures gone through this time; 0 where the set was there already."""
    seconds: float
    """That this took."""


def pack(settings: PackSettings, source: ImageSource | None = None) -> Packed:
    """Pack a set of images, or go on where an earlier call ended. Needs no device.

    Args:
        source: is packed in place of the one that the settings name, where it is given.

    Raises:
        UserError: settings that make no sense, data that cannot be read, a folder that holds something else or is in
            use, or one that cannot be written.
    """
    settings.check()
    source = source or open_source(settings.source, settings.split, SourceOptions.of(settings))
    options = PackOptions(**{each.name: getattr(settings, each.name) for each in fields(PackOptions)})
    shards = min(options.shards or math.ceil(len(source) / settings.rows_per_shard), len(source))
    options = replace(options, shards=shards)
    packer = Packer(source, settings.out, options, workers=settings.workers, max_unreadable=settings.max_unreadable)
    began, before = time.monotonic(), packer.done
    announce(source, options.size)
    _announce(source, packer)
    try:
        with image_bar("packing", len(source), before) as advance:
            manifest = packer.run(advance, say)
    except KeyboardInterrupt:
        say(f"stopped with {len(packer.manifest.shards)} of {options.shards} files finished; the same command resumes")
        raise
    except UnwritableError as error:
        raise UserError(f"{error}; the same command resumes") from None
    return Packed(settings.out, manifest, packer.done - before, time.monotonic() - began)


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
