"""What the headers of stored pictures tell without decoding them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from fqgan.base.errors import UnreadableError

if TYPE_CHECKING:
    from fqgan.data.sources.base import ImageSource, Stored

_ORIENTATION = 0x0112  # EXIF; values from 5 on swap width and height
_EXIF_IN_HEADER = ("JPEG", "MPO", "TIFF", "WEBP")  # Pillow decodes a whole PNG to look for it


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


def header(source: ImageSource, index: int, decode: bool = False) -> Header:
    """A picture's header. `decode`: its pixels too, since those of a file that is cut short show no sooner."""
    try:
        found = stored_header(source.stored(index))
    except UnreadableError as error:
        return Header(problem=str(error))
    if found is not None and not decode:
        return found
    try:
        image, _ = source.read(index)
    except UnreadableError as error:
        return Header(problem=str(error))
    return (found or Header(mode=image.mode))._replace(width=image.width, height=image.height)


def stored_header(item: Stored | None) -> Header | None:
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
