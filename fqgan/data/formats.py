"""Which picture files can be read in this installation, and what the others need."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif", ".jxl": "pillow_jxl"}
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_CONVERT = (
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"),  # camera raw
    *(".svg", ".psd", ".eps", ".wmf", ".exr", ".hdr"),
)


def _pillow_has_avif() -> bool:
    pillow = find_spec("PIL")  # looked for on disk: importing Pillow would slow down the start
    places = (pillow and pillow.submodule_search_locations) or ()
    return any(any(Path(place).glob("_avif.*")) for place in places)


NEEDS: dict[str, str] = {
    **{extension: "pip install 'fqgan[formats]'" for extension, name in _PLUGINS.items() if not find_spec(name)},
    **({} if _pillow_has_avif() else {".avif": "pip install --upgrade pillow"}),
    **dict.fromkeys(_CONVERT, "convert it to PNG or TIFF"),
}
"""Extension, in lower case, of pictures that are known but not read in this installation -> what to do."""

EXTENSIONS: tuple[str, ...] = tuple(
    extension
    for extension in (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pnm", ".pbm", ".pfm", ".avif", ".jp2", ".j2k", ".jpx", *_PLUGINS),
    )
    if extension not in NEEDS
)
"""Extensions, in lower case, of the picture files that are read in this installation."""


@cache
def register(check_size: Callable[[int, int], None]) -> bool:
    """Teach Pillow, in this process, the formats whose packages are installed; whether there is any.

    Called when Pillow knows no better, so that worker processes need no preparation and the start waits for nothing.
    `check_size` is called with (width, height) of JPEG XL files before they are opened: their plugin decodes at once.
    """
    from PIL import Image

    for name in sorted(set(_PLUGINS.values())):
        try:
            plugin = import_module(name)
        except ImportError:
            continue
        if name == "pillow_heif":
            plugin.register_heif_opener()
        else:
            opened, accepts = Image.OPEN["JXL"]
            Image.register_open("JXL", partial(_open_checked, opened, check_size), accepts)
    return "HEIF" in Image.OPEN or "JXL" in Image.OPEN


def _open_checked(opened: Callable[..., Any], check_size: Callable[[int, int], None], file: Any, name: Any) -> Any:
    check_size(*jxl_size(file.read(2**16)))
    file.seek(0)
    return opened(file, name)


def advice(name: str, head: bytes) -> str:
    """What to do about a picture that Pillow does not know, from its name ("a.heic", "a.heic of b.tar") or first bytes;
    empty where it is none of `NEEDS`."""
    extension = Path(name.partition(" of ")[0]).suffix.lower()
    if head[4:8] == b"ftyp":
        extension = ".heic" if head[8:12] in _BRANDS else ".avif" if head[8:12] in (b"avif", b"avis") else extension
    elif head.startswith(b"\xff\x0a") or head[4:8] == b"JXL ":
        extension = ".jxl"
    return NEEDS.get(extension, "")


def jxl_size(data: bytes) -> tuple[int, int]:
    """(width, height) that the first bytes of a JPEG XL file, bare or in boxes, claim."""
    boxes = data[4:8] == b"JXL "
    start = data.find(b"\xff\x0a", max(data.find(b"jxlc"), data.find(b"jxlp")) if boxes else 0) + 2
    bits = int.from_bytes(data[start : start + 12], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height, ratio = side(), take(3)
    ratios = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
    width = height * ratios[ratio - 1][0] // ratios[ratio - 1][1] if ratio else side()
    return width, height
