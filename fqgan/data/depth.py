"""Pictures deeper than 8 bits: their values as stored, and which of these become black and white."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fqgan.base.errors import UnreadableError, UserError

Values = npt.NDArray[Any]
OPTION = "say --data.range LOW HIGH (training) or --range LOW HIGH"
_BITS = (8, 10, 12, 14, 16)
_HALF_LEVEL = 1 / 510  # of a range: floats that leave it by less round to its ends
_FULL = 65535
_PHOTOMETRIC, _BITS_PER_SAMPLE, _PLANES, _SAMPLE_FORMAT = 262, 258, 284, 339  # TIFF tags


class Range(NamedTuple):
    """The values that become black and white."""

    low: float
    high: float


@dataclass(frozen=True)
class Ranges:
    """How the deep pictures of a set are mapped to 8 bits."""

    given: Range | None = None
    """The user's word, for every deep picture; values beyond are clipped."""
    guessed: Mapping[str, Range] = field(default_factory=dict)
    """"integer" and "float" -> what a sample of the set showed; a picture that leaves it is refused."""

    def to_8bit(self, values: Values, kind: str) -> npt.NDArray[np.uint8]:
        """`to_8bit` by the range for pictures of this kind. `UnreadableError` where the sample showed none."""
        if self.given is not None:
            return to_8bit(values, self.given, clip=True)
        if kind not in self.guessed:
            raise UnreadableError(f"the sample of the set showed no {kind} values deeper than 8 bits: {OPTION}")
        return to_8bit(values, self.guessed[kind], clip=False)


def is_deep(image: Image.Image) -> bool:
    """Whether a picture, just opened, stores more than Pillow's 8 bits, or signed values; from its header only.

    Colour of more than 8 bits in AVIF, HEIF, JPEG XL and JPEG 2000 below 16 bits, and 16-bit CMYK, are not: their
    formats say what is white, and Pillow scales them right.
    """
    if image.format == "JPEG":
        return False
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return True
    if image.format == "PNG":
        return _layout(image).endswith(";16B")
    if image.format == "TIFF":
        signed = image.mode == "L" and 2 in _tag(image, _SAMPLE_FORMAT)
        return signed or (16 in _tag(image, _BITS_PER_SAMPLE) and image.mode != "CMYK")
    if image.format == "PPM":
        return _maxval(image) > 255
    return image.format == "JPEG2000" and _jpeg2000_bits(image) >= 16


def kind(image: Image.Image) -> str:
    """ "integer" or "float"."""
    return "float" if image.mode == "F" else "integer"


def declared(image: Image.Image) -> Range | None:
    """Black and white of a deep picture, just opened, whose format states them; None where the values must tell."""
    bits = 16
    if image.format == "PPM" and image.mode != "F":
        return Range(0, _maxval(image)) if _maxval(image) < _FULL else None
    if image.format == "HEIF":
        return Range(0, _FULL)
    if image.format == "TIFF":
        bits = max(_tag(image, _BITS_PER_SAMPLE), default=16)
    elif image.format == "JPEG2000":
        bits = _jpeg2000_bits(image)
    return Range(0, 2**bits - 1) if 8 < bits < 16 else None


def white_is_low(image: Image.Image) -> bool:
    """Whether a deep picture stores white as its lowest value. Pillow turns only shallower ones."""
    return image.format == "TIFF" and 0 in _tag(image, _PHOTOMETRIC)


def values(image: Image.Image) -> Values:
    """(H, W) or (H, W, 3) values of a deep picture, just opened, in the type it stores (uint16, int32, float32 ...)."""
    return samples(image)[0]


def samples(image: Image.Image) -> tuple[Values, npt.NDArray[np.float32] | None]:
    """`values`, and (H, W) opacity in 0..1 where the picture has any. Errors as Pillow's; `UnreadableError` for values
    that cannot be had."""
    if image.format == "PPM" and image.mode != "F":
        return _raster(image), None
    if image.mode in ("RGB", "RGBA"):
        pixels = _jpeg2000_colour(image) if image.format == "JPEG2000" else _sixteen_bit_colour(image)
    else:
        shift = 16 - _jpeg2000_bits(image) if image.format == "JPEG2000" else 0
        if image.format == "TIFF":
            _mend_byte_order(image)
        pixels = np.asarray(image)
        if shift:
            pixels = pixels >> shift
        elif image.format == "TIFF" and image.mode == "L":
            pixels = pixels.view(np.int8)
        elif image.format == "TIFF" and image.mode == "I" and 1 in (_tag(image, _SAMPLE_FORMAT) or (1,)):
            pixels = pixels.view(np.uint32)  # Pillow holds unsigned 32 bits as signed ones
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        colour = pixels[..., 0] if pixels.shape[2] == 2 else pixels[..., :3]
        return colour, np.divide(pixels[..., -1], _FULL, dtype=np.float32)
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None:
        return pixels, None
    clear = pixels == np.array(key)
    return pixels, 1 - (clear.all(-1) if pixels.ndim == 3 else clear).astype(np.float32)


def guess(kinds: Sequence[tuple[str, float, float]]) -> dict[str, Range]:
    """The range of each kind, from ("integer" or "float", minimum, maximum) of a sample of deep pictures.

    Unsigned integers: the fewest of 8, 10, 12, 14 and 16 bits that hold them. Floats: 0 to 1, -1 to 1 or 0 to 255.
    `UserError` where neither fits, where all is zero, and for floats a little above 1: 0 to 255 would paint them black.
    """
    found: dict[str, Range] = {}
    for name in dict.fromkeys(entry[0] for entry in kinds):
        low = min(entry[1] for entry in kinds if entry[0] == name)
        high = max(entry[2] for entry in kinds if entry[0] == name)
        known = _guess_integer(low, high) if name == "integer" else _guess_float(low, high)
        if known is None or low == high == 0:
            raise UserError(f"{name} values {low:.7g} to {high:.7g} do not tell what is black and white: {OPTION}")
        found[name] = known
    return found


def _guess_integer(low: float, high: float) -> Range | None:
    return next((Range(0, 2**bits - 1) for bits in _BITS if low >= 0 and high < 2**bits), None)


def _guess_float(low: float, high: float) -> Range | None:
    choices = (Range(0, 1), Range(-1, 1), *((Range(0, 255),) if high >= 16 else ()))
    return next((choice for choice in choices if _inside(low, high, choice)), None)


def _inside(low: float, high: float, range: Range) -> bool:
    margin = (range.high - range.low) * _HALF_LEVEL
    return range.low - margin <= low and high <= range.high + margin


def parse_range(words: tuple[str, ...]) -> Range | None:
    """("auto",) -> None, ("0", "4095") -> Range(0, 4095). `UserError` for all else."""
    if words == ("auto",):
        return None
    try:
        low, high = (float(word) for word in words)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"range must be auto or two numbers, LOW below HIGH, got {' '.join(words) or 'nothing'}")
    return Range(low, high)


def to_8bit(values: Values, range: Range, *, clip: bool) -> npt.NDArray[np.uint8]:
    """rint((v - low) / (high - low) * 255) of values of any shape, within 0..255.

    `UnreadableError` for NaN and infinity, and for values outside the range unless they are to be clipped.
    """
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UnreadableError("holds values that are infinite or not a number")
    if not clip and not _inside(low, high, range):
        end, side = (f"down to {low:.7g}", "below") if low < range.low else (f"up to {high:.7g}", "above")
        sample = f"{side} the range {range.low:.7g} to {range.high:.7g} that the sample of the set showed"
        raise UnreadableError(f"holds values {end}, {sample}: {OPTION}")
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return _scale(np.arange(_FULL + 1), range)[values]  # by a table: large pictures stay below a gigabyte
    return _scale(values, range)


def _scale(values: Values, range: Range) -> npt.NDArray[np.uint8]:
    scaled = (values.astype(np.float64) - range.low) / (range.high - range.low) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _sixteen_bit_colour(image: Any) -> Values:
    """All 16 bits of RGB, RGBA and grey with opacity in PNG and TIFF, (H, W, 2 to 4) uint16.

    Pillow keeps one byte of each value: which one is set by the byte order that the layout names, so decoding once
    with either order gives both.
    """
    data, layout = _bytes(image), _layout(image)
    if image.format == "TIFF" and 2 in _tag(image, _PLANES):
        try:
            import tifffile
        except ImportError:
            raise UnreadableError(
                "16-bit colour in separate planes is read by tifffile: pip install tifffile"
            ) from None
        return np.moveaxis(tifffile.imread(io.BytesIO(data), key=0), 0, -1)
    if layout == "LA;16B":
        return np.ascontiguousarray(_decode(data, "RGBA")).view(">u2")
    swapped = {"L": "B", "B": "L", "N": "B" if np.little_endian else "L"}[layout[-1]]
    premultiplied, layout = layout.startswith("RGBa"), layout.replace("RGBa", "RGBA")
    upper, lower = _decode(data, layout), _decode(data, layout[:-1] + swapped)
    pixels = (upper.astype(np.uint16) << 8) | lower
    if premultiplied:
        opacity = np.maximum(pixels[..., 3:], 1).astype(np.float32)
        colour = np.minimum(np.rint(pixels[..., :3] * np.float32(_FULL) / opacity), _FULL)
        pixels = np.concatenate([colour.astype(np.uint16), pixels[..., 3:]], axis=2)
    return pixels


def _decode(data: bytes, layout: str) -> Values:
    with Image.open(io.BytesIO(data)) as image:
        tiles: Any = image.tile
        image.tile = [
            tile._replace(args=layout if isinstance(tile.args, str) else (layout, *tile.args[1:])) for tile in tiles
        ]
        return np.asarray(image)


def _jpeg2000_colour(image: Image.Image) -> Values:
    """Pillow keeps the upper byte: enough for pictures that use 15 bits or more."""
    upper = np.asarray(image)
    if upper[..., :3].max() < 64:
        raise UnreadableError("16-bit colour in JPEG 2000 is read with 8 bits, and these are dark: convert it to PNG")
    return upper.astype(np.uint16) * 257


def _raster(image: Image.Image) -> Values:
    """The values of a PGM or PPM file. Pillow's are scaled to 65535, those of colours cut to 8 bits."""
    bands, data = len(image.getbands()), _bytes(image)
    count, text = image.width * image.height * bands, data[:2] in (b"P2", b"P3")
    rest = data[_first_tile(image).offset :]
    if text:
        pixels = np.array(re.sub(rb"#[^\r\n]*", b"", rest).split()[:count], dtype=np.uint16)
    else:
        pixels = np.frombuffer(rest[: 2 * count], dtype=">u2")
    if len(pixels) < count:
        raise UnreadableError("the file is truncated")
    if pixels.max() > _maxval(image):
        raise UnreadableError(f"holds values up to {pixels.max()}, above the {_maxval(image)} that its header states")
    return pixels.reshape((image.height, image.width, bands)[: 2 if bands == 1 else 3])


def _jpeg2000_bits(image: Image.Image) -> int:
    """The precision of the first channel, from the codestream's header."""
    data = _bytes(image)
    start = data.find(b"\xff\x4f\xff\x51")
    return (data[start + 42] & 0x7F) + 1 if 0 <= start < len(data) - 42 else 16


def _mend_byte_order(image: Any) -> None:
    """libtiff, which unpacks compressed files, gives signed values and floats in the machine's byte order; Pillow takes
    them for the file's."""
    if image.use_load_libtiff:
        native = re.sub(r"^(F;32|I;16|I;32)B?([FS])$", r"\1N\2", _layout(image))
        image.tile = [tile._replace(args=(native, *tile.args[1:])) for tile in image.tile]


def _first_tile(image: Any) -> Any:
    return image.tile[0]


def _layout(image: Any) -> str:
    """How Pillow is to read the pixels, as "RGB;16B"; empty where it does not say."""
    args = _first_tile(image).args if image.tile else ""
    return args if isinstance(args, str) else str(args[0])


def _maxval(image: Any) -> int:
    """What a PPM file states to be white; 255 for the others of its family."""
    layout, args = _layout(image), _first_tile(image).args
    if layout == "I;16B":
        return _FULL
    return int(args[1]) if not isinstance(args, str) and image.mode in ("I", "L", "RGB") else 255


def _tag(image: Any, number: int) -> tuple[Any, ...]:
    value = image.tag_v2.get(number, ())
    return value if isinstance(value, tuple) else (value,)


def _bytes(image: Any) -> bytes:
    """The whole file of a picture that has not been decoded yet."""
    position = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(position)
    return data
