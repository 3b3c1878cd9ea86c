"""Picture files to upright RGB images."""

from __future__ import annotations

import io
import math
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from fqgan.base.errors import UnreadableError, UserError
from fqgan.data import depth
from fqgan.data.depth import Ranges
from fqgan.data.formats import advice, register

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_PIXELS = 2**27
"""Pixels of a picture at most, read from its header before anything is decoded: 400 MB as RGB. Pictures of a
100-megapixel camera pass; a small file that claims more would take a loader process's memory."""
_CONVERT = ("EPS", "PSD", "WMF")  # Pillow would start another program, or read a part of them
_NEW_SUBFILE_TYPE, _PHOTOMETRIC, _SUBSAMPLING, _DNG_VERSION = 254, 262, 530, 50706  # TIFF tags


def decode_image(data: Path | bytes, name: str, ranges: Ranges | None = None) -> Image.Image:
    """Decode a file or its bytes to RGB: the first frame, upright after its EXIF orientation, transparency over white.

    `ranges` says which values of a picture deeper than 8 bits become black and white; without it the picture alone
    tells (see `depth.guess`). `UnreadableError` with `name` for a picture that is broken, or whose black and white
    cannot be size; `UserError` where the file cannot be read in the first place.
    """
    try:
        with _file(data) as file, _open(file) as image:
            _check(image)
            return _fast_jpeg(image) or (_deep_to_rgb(image, ranges) if depth.is_deep(image) else to_rgb(image))
    except FileNotFoundError:
        raise UserError(f"{name} does not exist") from None
    except UnidentifiedImageError:
        if _is_special(data):
            raise UserError(f"{name} cannot be read as a picture: it is no regular file") from None
        needed = advice(name, _first_bytes(data))
        reason = f"{name} is no picture in a format that Pillow reads" + (f" here: {needed}" if needed else "")
        raise UnreadableError(reason) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error and more on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        # an error number is the system's: storage that fails is no fault of the picture
        kind = UserError if isinstance(error, OSError) and error.errno else UnreadableError
        if kind is UnreadableError and _is_special(data):
            kind, reason = UserError, "it is no regular file"
        raise kind(f"{name} cannot be read as a picture: {reason}") from None


def _check(image: ImageFile.ImageFile) -> None:
    """Refuse what would take too much memory, and what Pillow would read wrongly."""
    _check_size(*image.size)
    if image.format == "TIFF":
        _check_tiff(image)
    elif image.format == "PNG":
        _check_png(image)
    elif image.format in _CONVERT:
        raise UnreadableError(f"{image.format} is not read here: convert it to PNG or TIFF")


def _file(data: Path | bytes) -> IO[bytes]:
    if not isinstance(data, Path):
        return io.BytesIO(data)
    descriptor = os.open(data, os.O_RDONLY | os.O_NONBLOCK)  # the other end of a pipe would be waited for
    try:
        return open(descriptor, "rb")
    except OSError as error:  # a folder
        os.close(descriptor)
        raise OSError(error.errno, error.strerror) from None


def _open(file: IO[bytes]) -> ImageFile.ImageFile:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if not register(_check_size):
            raise
        file.seek(0)
        return Image.open(file)


def _is_special(data: Path | bytes) -> bool:
    """Whether it is a pipe or a device."""
    return isinstance(data, Path) and os.path.exists(data) and not os.path.isfile(data)


def _first_bytes(data: Path | bytes) -> bytes:
    if not isinstance(data, Path):
        return data[:32]
    with data.open("rb") as file:
        return file.read(32)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{width}x{height} pixels are more than the {MAX_PIXELS} allowed")


def _check_png(image: Any) -> None:
    """Pillow passes over the checksums of the pixels, and would hand out what is left of damaged ones. Two percent of
    the time of decoding."""
    file, place = image.fp, image.fp.tell()
    file.seek(len(b"\x89PNG\r\n\x1a\n"))
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind != b"IDAT":
            file.seek(length + 4, os.SEEK_CUR)
            continue
        found, end = zlib.crc32(kind), file.tell() + length
        while (left := end - file.tell()) and (data := file.read(min(left, 2**20))):
            found = zlib.crc32(data, found)
        if not left and len(size := file.read(4)) == 4 and found != int.from_bytes(size):
            raise UnreadableError("its pixels are damaged: their checksum is another")
    file.seek(place)


def _check_tiff(image: Any) -> None:
    tags = image.tag_v2
    if tags.get(_NEW_SUBFILE_TYPE, 0) & 1 or _DNG_VERSION in tags:
        raise UnreadableError("its first image is a preview, as in a camera's raw file: convert it to PNG or TIFF")
    if tags.get(_PHOTOMETRIC) == 6 and not image.use_load_libtiff and tags.get(_SUBSAMPLING, (1, 1)) != (1, 1):
        raise UnreadableError("uncompressed YCbCr with fewer colours than pixels: convert it to PNG")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of 8 bits in any Pillow mode to RGB: upright after its EXIF orientation, transparency over
    white."""
    image = _upright(image)
    if image.mode == "La":  # Pillow turns it into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _deep_to_rgb(image: ImageFile.ImageFile, ranges: Ranges | None) -> Image.Image:
    """The same of a picture that `depth.is_deep`, just opened."""
    kind, known, turned = depth.kind(image), depth.declared(image), depth.white_is_low(image)
    values, opacity = depth.samples(image)
    if known is not None and (ranges is None or ranges.given is None):
        ranges = Ranges(given=known)
    pixels = (ranges or _own_ranges(kind, values)).to_8bit(values, kind)
    pixels = 255 - pixels if turned else pixels
    if opacity is not None:
        opacity = opacity.reshape(opacity.shape + (1,) * (pixels.ndim - 2))
        pixels = np.rint(pixels * opacity + 255 * (1 - opacity)).astype(np.uint8)
    result = Image.fromarray(pixels)
    with suppress(Exception):  # broken EXIF data
        result.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
        result = ImageOps.exif_transpose(result)
    return result.convert("RGB")


def _own_ranges(kind: str, values: depth.Values) -> Ranges:
    """What the values of a picture alone tell."""
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)) or (kind == "integer" and low == high == 0):
        return Ranges(guessed={kind: depth.Range(0, 1)})  # refused for its values, or black in any range
    return Ranges(guessed=depth.guess([(kind, low, high)]))


def _fast_jpeg(image: ImageFile.ImageFile) -> Image.Image | None:
    """A colour JPEG, just opened, by the package simplejpeg if it is installed: the same pixels, a little sooner for
    small pictures and in half of Pillow's time for large ones. None for all else: Pillow turns pictures, and says what
    is wrong with broken ones."""
    if simplejpeg is None or image.format != "JPEG" or image.mode != "RGB" or not image.fp:
        return None
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        image.fp.seek(0)
        pixels = simplejpeg.decode_jpeg(image.fp.read(), "RGB")
    except Exception:
        return None
    return Image.fromarray(pixels) if pixels.shape[1::-1] == image.size else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data; if the pixels are broken too, loading them below says so
        image.load()
        return image


@dataclass(frozen=True)
class SetRanges:
    """What a sample of a set's stored pictures shows of those deeper than 8 bits."""

    looked_at: int
    deep: int
    modes: dict[str, int]
    """Pillow's name of a deep picture's mode -> how many."""
    decoded: int
    """How many of the deep ones were read whole: those whose format does not state what is white."""
    found: dict[str, tuple[float, float]]
    """"integer" and "float" -> the smallest and largest value of the decoded ones."""
    ranges: Ranges | None
    """None where the values do not tell; then `problem` says so in one line."""
    problem: str = ""
    darkest: dict[str, float] = field(default_factory=dict)
    """"integer" and "float" -> the smallest of the decoded pictures' largest values."""

    @property
    def mixed(self) -> str:
        """What is odd about pictures of very different depths in one set; empty where nothing is."""
        for kind, (_, high) in self.found.items():
            if high > 8 * self.darkest.get(kind, high):
                return (
                    f"some deep pictures reach {self.darkest[kind]:.7g} only, others {high:.7g}: if they are of "
                    "different depths, the first come out nearly black; read them as sets of their own"
                )
        return ""

    def describe(self) -> str:
        """In one sentence, as "12-bit values 0 to 4095 (largest of 32 pictures looked at: 3980)"."""
        if self.problem:
            return self.problem
        parts = []
        for kind, (low, high) in self.found.items():
            black, white = self.ranges.guessed[kind] if self.ranges else (0, 0)
            name = f"{int(white).bit_length()}-bit" if kind == "integer" else "float"
            smallest = f"smallest {low:.7g}, " if low < 0 else ""
            seen = f"{smallest}largest of {self.decoded} pictures looked at: {high:.7g}"
            parts.append(f"{name} values {black:.7g} to {white:.7g} ({seen})")
        if stated := self.deep - self.decoded:
            parts.append(f"{stated} deep pictures not decoded")
        return "; ".join(parts) or f"8-bit pictures ({self.looked_at} looked at)"


def set_ranges(pictures: Iterable[Path | bytes], look: int = 300, decode: int = 32) -> SetRanges:
    """Look at the headers of the first `look` pictures and at the values of the first `decode` deep ones.

    Pictures that cannot be read are passed over: reading the set tells of them. Never raises for what it finds.
    """
    looked_at, modes, samples = 0, Counter[str](), list[tuple[str, float, float]]()
    for data in islice(pictures, look):
        looked_at += 1
        with suppress(Exception), _file(data) as file, _open(file) as image:
            _check(image)
            if not depth.is_deep(image):
                continue
            modes[image.mode] += 1
            if len(samples) < decode and depth.declared(image) is None:
                kind, values = depth.kind(image), depth.values(image)
                low, high = float(values.min()), float(values.max())
                if math.isfinite(low) and math.isfinite(high):
                    samples.append((kind, low, high))
    found = {
        kind: (min(low for k, low, _ in samples if k == kind), max(high for k, _, high in samples if k == kind))
        for kind in dict.fromkeys(entry[0] for entry in samples)
    }
    counts = (looked_at, modes.total(), dict(modes), len(samples), found)
    darkest = {kind: min(high for k, _, high in samples if k == kind) for kind in found}
    try:
        return SetRanges(*counts, Ranges(guessed=depth.guess(samples)), darkest=darkest)
    except UserError as error:
        return SetRanges(*counts, None, str(error))
