"""Pictures as they are stored: their bytes, and what their headers tell without decoding them."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fqgan.data.images import FolderSource, ImageSource
from fqgan.data.parquet import ParquetSource
from fqgan.data.tar import TarSource
from fqgan.errors import UnreadableError

_ORIENTATION = 0x0112  # EXIF; values from 5 on swap width and height
_EXIF_IN_HEADER = ("JPEG", "MPO", "TIFF", "WEBP")  # Pillow decodes a whole PNG to look for it


class Stored(NamedTuple):
    """A picture as its source stores it."""

    data: Path | bytes
    path: str
    """What the data set calls it; empty where it has no name."""


class Header(NamedTuple):
    """What is known of a picture."""

    width: int = 0
    """Pixels, upright; 0 where the picture cannot be read."""
    height: int = 0
    format: str = ""
    """Pillow's name, as JPEG; empty where the source stores no single pictures."""
    mode: str = ""
    """Pillow's name, as RGB."""
    size: int = 0
    """Bytes; 0 where the source stores no single pictures."""
    problem: str = ""
    """Why the picture cannot be read."""


def stored(source: ImageSource, index: int) -> Stored | None:
    """A picture as it is stored; None where the source has no such thing, like the packaged photographs."""
    if isinstance(source, FolderSource):
        file = source.describe(index)
        name = os.path.relpath(file, Path(source.name).expanduser())
        return Stored(Path(file), os.fsencode(name).decode(errors="replace"))
    if isinstance(source, ParquetSource):
        block, row = source._locate(index)
        cell = source._column(block)[row].as_py()
        data, path = (cell["bytes"], cell.get("path")) if isinstance(cell, dict) else (cell, "")
        return Stored(data, path or "") if data is not None else None
    if isinstance(source, TarSource):
        file = source._file(source._tar(index))
        data = os.pread(file.fileno(), int(source._sizes[index]), int(source._offsets[index]))
        return Stored(data, source.describe(index).rpartition(" of ")[0])
    return None


def header(source: ImageSource, index: int, decode: bool = False) -> Header:
    """A picture's header. `decode`: its pixels too, since those of a file that is cut short show no sooner."""
    found = _stored_header(stored(source, index))
    if found is not None and not decode:
        return found
    try:
        image, _ = source.read(index)
    except UnreadableError as error:
        return Header(problem=str(error))
    return (found or Header(mode=image.mode))._replace(width=image.width, height=image.height)


def evenly_spaced(blocks: Sequence[int], count: int, most_blocks: int = 64) -> list[int]:
    """At most `count` (0: all) evenly spaced indices of a source, in order, from no more than `most_blocks` blocks, as
    each of these has to be read whole."""
    total = sum(blocks)
    if not count or count >= total:
        return list(range(total))
    chosen = _spread(len(blocks), min(len(blocks), most_blocks, count))
    indices = []
    for number, block in enumerate(chosen):
        share = (number + 1) * count // len(chosen) - number * count // len(chosen)
        start = sum(blocks[:block])
        indices += [start + i for i in _spread(blocks[block], min(share, blocks[block]))]
    return indices


def _spread(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]


def _stored_header(item: Stored | None) -> Header | None:
    """None where the header cannot be read; then decoding tells why."""
    if item is None:
        return None
    try:
        with Image.open(item.data if isinstance(item.data, Path) else io.BytesIO(item.data)) as image:
            size = item.data.stat().st_size if isinstance(item.data, Path) else len(item.data)
            width, height = image.size
            if image.format in _EXIF_IN_HEADER and image.getexif().get(_ORIENTATION, 1) >= 5:
                width, height = height, width
            return Header(width, height, image.format or "", image.mode, size)
    except MemoryError:
        raise
    except Exception:
        return None
