"""Pictures deeper than 8 bits, against closed forms; and what is refused."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fqgan.base.errors import UnreadableError, UserError
from fqgan.data.decode import decode_image, set_ranges
from fqgan.data.depth import Range, Ranges, guess, is_deep, parse_range, to_8bit, values

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
COLOUR = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
OPACITY = RNG.integers(0, 65536, (5, 7, 1), dtype=np.uint16)
REFUSED = r"^a cannot be read as a picture: [^\n]*"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 16 bits, which Pillow only writes in grey."""

    def chunk(data: bytes) -> bytes:
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    height, width, channels = pixels.shape
    header = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = (header, *chunks, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, parts))


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def eight(data: bytes, ranges: Ranges | None = None) -> np.ndarray:
    return np.array(decode_image(data, "a", ranges))


def grey(pixels: np.ndarray, white: float) -> np.ndarray:
    return np.repeat(np.rint(pixels[..., None] / white * 255).astype(np.uint8), 3, axis=2)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_integers_are_mapped_by_the_fewest_bits_that_hold_them(bits: int) -> None:
    pixels = GREY >> (16 - bits)
    pixels[0, 0] = 2**bits - 1
    for data in (
        saved(Image.fromarray(pixels), "tiff"),
        saved(Image.fromarray(pixels), "tiff", compression="tiff_lzw"),
        saved(Image.fromarray(pixels), "png"),
        saved(Image.fromarray(pixels), "ppm"),
        saved(Image.fromarray(pixels.astype(np.int32)), "tiff"),
        tiff(pixels, byteorder=">"),
        tiff(pixels, byteorder=">", compression="zlib"),
        tiff(pixels.astype(np.uint32)),
        *(tiff(pixels.astype(np.int32), byteorder=order, compression="zlib") for order in "<>"),
    ):
        assert is_deep(opened(data))
        np.testing.assert_array_equal(values(opened(data)), pixels)
        np.testing.assert_array_equal(eight(data), grey(pixels, 2**bits - 1))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255)])
def test_floats(low: float, high: float) -> None:
    pixels = (low + (high - low) * GREY / 65535).astype(np.float32)
    pixels[0, 0], pixels[0, 1] = low, high
    want = np.rint((pixels.astype(np.float64) - low) / (high - low) * 255)
    for data in (saved(Image.fromarray(pixels), "tiff"), tiff(pixels, byteorder=">", compression="zlib")):
        np.testing.assert_array_equal(eight(data)[..., 1], want)
    pfm = saved(Image.fromarray(pixels), "ppm")
    assert pfm.startswith(b"Pf")
    np.testing.assert_array_equal(eight(pfm)[..., 1], want)


def test_sixteen_bit_colour_keeps_all_bits() -> None:
    for data in (
        png(COLOUR),
        *(
            tiff(COLOUR, photometric="rgb", byteorder=order, compression=compression)
            for order in "<>"
            for compression in (None, "zlib")
        ),
        tiff(COLOUR, photometric="rgb", compression="zlib", predictor=True),
        *(
            tiff(np.moveaxis(COLOUR, 2, 0), photometric="rgb", planarconfig="separate", compression=compression)
            for compression in (None, "zlib")
        ),
        b"P6 7 5 65535\n" + COLOUR.astype(">u2").tobytes(),
        b"P3 7 # wide\n5 65535\n" + " ".join(map(str, COLOUR.ravel())).encode(),
        tiff(np.dstack([COLOUR, OPACITY]), photometric="rgb", extrasamples=["unspecified"]),
    ):
        assert is_deep(opened(data))
        np.testing.assert_array_equal(values(opened(data)), COLOUR)
        np.testing.assert_array_equal(eight(data), np.rint(COLOUR / 257))
        dark = eight(data, Ranges(given=Range(0, 999)))
        np.testing.assert_array_equal(dark, np.rint(np.minimum(COLOUR, 999) / 999 * 255))


def test_opacity_of_deep_pictures() -> None:
    opacity = OPACITY / 65535
    over_white = np.rint(COLOUR / 257) * opacity + 255 * (1 - opacity)
    both = np.dstack([COLOUR, OPACITY])
    for data in (png(both), *(tiff(both, photometric="rgb", extrasamples=["unassalpha"], byteorder=o) for o in "<>")):
        np.testing.assert_allclose(eight(data), over_white, atol=0.51)
    one = np.dstack([GREY, OPACITY])
    assert is_deep(opened(png(one)))
    np.testing.assert_array_equal(values(opened(png(one))), GREY)
    np.testing.assert_allclose(eight(png(one))[..., 2], over_white_of(GREY, opacity[..., 0]), atol=0.51)
    multiplied = np.dstack([np.rint(COLOUR * opacity).astype(np.uint16), OPACITY])
    data = tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_allclose(eight(data), over_white, atol=1)


def over_white_of(pixels: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return np.rint(pixels / 257) * opacity + 255 * (1 - opacity)


def test_a_colour_key_of_sixteen_bits_becomes_white() -> None:
    key = png(COLOUR, b"tRNS" + struct.pack(">3H", *COLOUR[0, 0]))
    want = np.rint(COLOUR / 257)
    want[0, 0] = 255
    np.testing.assert_array_equal(eight(key), want)
    np.testing.assert_array_equal(
        eight(png(GREY[..., None], b"tRNS" + struct.pack(">H", GREY[2, 3])))[2, 3], [255, 255, 255]
    )


def test_deep_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    want = np.rot90(grey(GREY, 65535), -1)
    for kind in ("png", "tiff"):
        np.testing.assert_array_equal(eight(saved(Image.fromarray(GREY), kind, exif=exif)), want)


def test_formats_that_state_their_white() -> None:
    """Dark pictures stay dark."""
    dark = GREY >> 8
    for data in (b"P5 7 5 4095\n" + dark.astype(">u2").tobytes(), b"P2 7 5 4095 " + text(dark)):
        np.testing.assert_array_equal(values(opened(data)), dark)
        np.testing.assert_array_equal(eight(data), grey(dark, 4095))
        np.testing.assert_array_equal(eight(data, Ranges(guessed={"integer": Range(0, 65535)})), grey(dark, 4095))
        np.testing.assert_array_equal(eight(data, Ranges(given=Range(0, 255))), grey(dark, 255))


def text(pixels: np.ndarray) -> bytes:
    return " ".join(map(str, pixels.ravel())).encode()


def test_jpeg_2000() -> None:
    plain = saved(Image.fromarray(GREY), "jpeg2000")
    np.testing.assert_array_equal(eight(plain), grey(GREY, 65535))
    # 12 bits, which Pillow does not write: its own file with another precision, which moves all values by a constant
    twelve = GREY >> 4
    data = bytearray(saved(Image.fromarray(twelve + np.uint16(32768 - 2048)), "jpeg2000", no_jp2=True))
    data[data.find(b"\xff\x4f\xff\x51") + 42] = 11
    np.testing.assert_array_equal(values(opened(bytes(data))), twelve)
    np.testing.assert_array_equal(eight(bytes(data)), grey(twelve, 4095))


def test_white_may_be_the_lowest_value() -> None:
    data = tiff(GREY, photometric="miniswhite")
    np.testing.assert_array_equal(eight(data), 255 - grey(GREY, 65535))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[-5, 9]], np.int16), "integer values -5 to 9 do not tell .*--data.range LOW HIGH .*--range LOW"),
        (np.array([[-5, 9]], np.int8), "integer values -5 to 9 do not tell"),
        (np.array([[-5, 9]], np.int32), "integer values -5 to 9 do not tell"),
        (np.array([[0, 65536]], np.int32), "integer values 0 to 65536 do not tell"),
        (np.array([[0, 4e9]], np.uint32), "integer values 0 to 4e\\+09 do not tell"),
        (np.array([[0, 1e4]], np.float32), "float values 0 to 10000 do not tell"),
        (np.array([[0, 3]], np.float32), "float values 0 to 3 do not tell"),
        (np.array([[0, 0]], np.float32), "float values 0 to 0 do not tell"),
        (np.array([[0, np.nan]], np.float32), "holds values that are infinite or not a number"),
        (np.array([[0, np.inf]], np.float32), "holds values that are infinite or not a number"),
    ],
)
def test_what_cannot_be_told_is_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(UnreadableError, match=REFUSED + message):
        eight(tiff(pixels))
    if np.isfinite(pixels).all():
        given = eight(tiff(pixels), Ranges(given=Range(-10, 10)))
        np.testing.assert_array_equal(given[..., 0], np.rint((np.clip(pixels * 1.0, -10, 10) + 10) / 20 * 255))


def test_black_is_black_in_any_range() -> None:
    assert not eight(saved(Image.fromarray(np.zeros((4, 4), np.uint16)), "png")).any()


def test_guess() -> None:
    assert guess([("integer", 0, 4000), ("integer", 3, 70), ("float", 0.25, 1.001)]) == {
        "integer": Range(0, 4095),
        "float": Range(0, 1),
    }
    assert guess([("float", -0.2, 1)]) == {"float": Range(-1, 1)}
    assert guess([]) == {}
    with pytest.raises(UserError, match=r"^integer values 0 to 0 do not tell [^\n]*$"):
        guess([("integer", 0, 0), ("float", 0, 1)])


def test_parse_range() -> None:
    assert parse_range(("auto",)) is None
    assert parse_range(("0", "4095")) == Range(0, 4095)
    assert parse_range(("-1", "1e-1")) == Range(-1, 0.1)
    for words in (
        ("5", "5"),
        ("9", "1"),
        ("nan", "1"),
        ("0", "inf"),
        ("1",),
        ("low", "high"),
        ("auto", "1"),
        (),
        "abc",
    ):
        with pytest.raises(UserError, match=r"^range must be auto or two numbers[^\n]*$"):
            parse_range(tuple(words))


def test_a_picture_outside_the_guessed_range_is_refused() -> None:
    bright = saved(Image.fromarray(np.array([[0, 60000]], np.uint16)), "png")
    message = (
        "holds values up to 60000, above the range 0 to 4095 that the sample of the set showed: .*--data.range LOW"
    )
    with pytest.raises(UnreadableError, match=REFUSED + message):
        eight(bright, Ranges(guessed={"integer": Range(0, 4095)}))
    np.testing.assert_array_equal(eight(bright, Ranges(given=Range(0, 4095)))[0, :, 0], [0, 255])
    with pytest.raises(UnreadableError, match=r"down to -0.5, below the range 0 to 1 "):
        to_8bit(np.array([-0.5, 0.5]), Range(0, 1), clip=False)
    with pytest.raises(UnreadableError, match=REFUSED + "the sample of the set showed no float values"):
        eight(tiff(np.ones((2, 2), np.float32)), Ranges(guessed={"integer": Range(0, 4095)}))


def test_the_ranges_of_a_set(tmp_path: Path) -> None:
    deep = [saved(Image.fromarray(np.array([[7, high]], np.uint16)), "png") for high in (9, 3980, 2000)]
    (tmp_path / "a.tif").write_bytes(tiff(np.array([[0.5, 1]], np.float32)))
    shallow = saved(Image.new("RGB", (2, 2)), "png")
    found = set_ranges([shallow, *deep, b"broken", tmp_path / "none.png"])
    assert (found.looked_at, found.deep, found.modes) == (6, 3, {"I;16": 3})
    assert found.found == {"integer": (7, 3980)}
    assert found.ranges == Ranges(guessed={"integer": Range(0, 4095)})
    assert found.describe() == "12-bit values 0 to 4095 (largest of 3 pictures looked at: 3980)"
    both = set_ranges([deep[0], tmp_path / "a.tif"])
    assert both.ranges == Ranges(guessed={"integer": Range(0, 255), "float": Range(0, 1)})
    assert set_ranges([shallow]).describe() == "8-bit pictures (1 looked at)"
    refused = set_ranges([tiff(np.array([[-5, 9]], np.int16))])
    assert refused.ranges is None and refused.describe().startswith("integer values -5 to 9 do not tell")
    assert set_ranges(deep * 20, look=50, decode=2).describe().endswith("; 48 deep pictures not decoded")


@pytest.mark.filterwarnings("ignore:Image size")
def test_hostile_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(
            UserError, match=r"^a cannot be read as a picture: [^\n]*(no regular file|Is a directory)$"
        ) as caught:
            decode_image(path, "a")
        assert not isinstance(caught.value, UnreadableError)
    with pytest.raises(UnreadableError, match=r"^a is no picture in a format that Pillow reads$"):
        decode_image(b"", "a")
    whole = [
        *(saved(Image.fromarray(RNG.integers(0, 65536, (64, 64), dtype=np.uint16)), k) for k in ("png", "tiff", "ppm")),
        png(np.tile(COLOUR, (9, 9, 1))),
        tiff(np.tile(COLOUR, (9, 9, 1)), photometric="rgb"),
        tiff(np.tile(COLOUR, (9, 9, 1)), photometric="rgb", compression="zlib"),
    ]
    for data in whole:
        with pytest.raises(UnreadableError, match=REFUSED + "$"):
            decode_image(data[: len(data) * 2 // 3], "a")
    with pytest.raises(UnreadableError, match=REFUSED + "holds values up to 5000, above the 4095 that its header"):
        decode_image(b"P5 1 1 4095\n" + struct.pack(">H", 5000), "a")
    for kind in ("png", "tiff"):
        huge = saved(Image.new("1", (20000, 8000)), kind, **({"compression": "group4"} if kind == "tiff" else {}))
        with pytest.raises(UnreadableError, match=REFUSED + r"20000x8000 pixels are more than the \d+ allowed$"):
            decode_image(huge, "a")


def test_a_preview_is_not_taken_for_the_picture() -> None:
    """The first image of a camera's raw file is a small one."""
    data = tiff(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8), photometric="rgb", subfiletype=1)
    with pytest.raises(UnreadableError, match=REFUSED + "its first image is a preview"):
        decode_image(data, "a")


def test_first_page_of_a_tiff_and_first_frame_of_a_smaller_gif() -> None:
    pages = [Image.fromarray(GREY), Image.fromarray(GREY >> 4)]
    data = saved(pages[0], "tiff", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(eight(data), grey(GREY, 65535))


def test_lab_and_premultiplied_opacity() -> None:
    red = np.full((2, 2, 3), (138, 81, 70), np.uint8)  # L 54.3, a 80.8, b 69.9 under D50
    np.testing.assert_allclose(eight(tiff(red, photometric="cielab")), np.full((2, 2, 3), (255, 0, 0)), atol=6)
    half = np.full((2, 2, 2), (51, 102), np.uint8)  # grey 51 / 0.4 = 127.5 at opacity 0.4
    data = tiff(half, photometric="minisblack", planarconfig="contig", extrasamples=["assocalpha"])
    np.testing.assert_allclose(eight(data), 51 + 153, atol=1)
