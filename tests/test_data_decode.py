"""Real files of every mode that Pillow opens, and broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from fqgan.base.errors import UnreadableError, UserError
from fqgan.data import decode
from fqgan.data.decode import decode_image

WHITE = (255, 255, 255)


def pixel(image: Image.Image, path: Path, **options: object) -> object:
    image.save(path, **options)
    decoded = decode_image(path, path.name)
    assert decoded.mode == "RGB"
    return decoded.getpixel((0, 0))


def test_grey_and_bilevel(tmp_path: Path) -> None:
    assert pixel(Image.new("L", (4, 4), 77), tmp_path / "l.png") == (77, 77, 77)
    assert pixel(Image.new("1", (4, 4), 1), tmp_path / "1.png") == WHITE


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    """Pillow reads the high bytes. It cannot write such files: this one is made by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for colour_type, channels in ((2, (0x1234, 0x8000, 0xFFFF)), (6, (0x1234, 0x8000, 0xFFFF, 0xFFFF))):
        row = b"\0" + struct.pack(f">{len(channels)}H", *channels) * 4
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
        assert decode_image(data, "a.png").getpixel((3, 3)) == (0x12, 0x80, 0xFF)


def test_palettes(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 2)
    image.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    for name in ("p.png", "p.gif", "p.bmp", "p.tif"):
        assert pixel(image, tmp_path / name) == (7, 8, 9)
    assert pixel(image, tmp_path / "half.png", transparency=bytes([255, 255, 102])) == (156, 156, 157)


def test_colour_spaces_and_floats(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), "red")
    np.testing.assert_allclose(pixel(red.convert("YCbCr"), tmp_path / "ycc.tif"), (255, 0, 0), atol=2)
    assert pixel(Image.new("F", (4, 4), 77.0), tmp_path / "float.tif") == (77, 77, 77)


def bomb(side: int) -> bytes:
    """A one-bit picture of side x side pixels, white, in a file a thousand times smaller."""
    buffer = io.BytesIO()
    Image.new("1", (side, side), 1).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.filterwarnings("error")
def test_too_many_pixels_are_told_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    assert decode_image(bomb(31), "a.png").size == (31, 31)
    data = bomb(32)
    monkeypatch.setattr(PngImageFile, "load", lambda *arguments: pytest.fail("it was decoded"))
    with pytest.raises(UnreadableError) as caught:
        decode_image(data, "a.png")
    assert str(caught.value) == "a.png cannot be read as a picture: 32x32 pixels are more than the 1000 allowed"


def test_the_limit_is_below_pillow_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """From there on Pillow refuses by itself, with no more than a warning before."""
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 100e6 < decode.MAX_PIXELS < 2 * Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match=r"^a\.png cannot be read as a picture: Image size [^\n]*$"):
        decode_image(bomb(15), "a.png")


def test_alpha_is_composited_over_white(tmp_path: Path) -> None:
    assert pixel(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), tmp_path / "clear.png") == WHITE
    assert pixel(Image.new("RGBA", (4, 4), (200, 100, 0, 255)), tmp_path / "opaque.png") == (200, 100, 0)
    assert pixel(Image.new("RGBA", (4, 4), (0, 0, 0, 102)), tmp_path / "half.png") == (153, 153, 153)
    assert pixel(Image.new("LA", (4, 4), (0, 102)), tmp_path / "la.png") == (153, 153, 153)


def test_transparent_palette_entries_and_colour_keys_become_white(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert pixel(palette, tmp_path / "opaque.png", transparency=0) == (40, 50, 60)
    assert pixel(palette, tmp_path / "palette.png", transparency=1) == WHITE
    assert pixel(palette, tmp_path / "palette.gif", transparency=1) == WHITE
    assert pixel(Image.new("RGB", (4, 4), (1, 2, 3)), tmp_path / "key.png", transparency=(1, 2, 3)) == WHITE


@pytest.mark.parametrize("name", ["16.png", "16.tif", "16.pgm"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    for value, expected in ((0, 0), (257 * 100, 100), (0x8080, 0x80), (65535, 255)):
        image = Image.fromarray(np.full((4, 4), value, np.uint16))
        assert pixel(image, tmp_path / name) == (expected,) * 3


def test_cmyk(tmp_path: Path) -> None:
    assert pixel(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "cmyk.tif") == (255, 0, 0)
    jpeg = pixel(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "cmyk.jpg", quality=95)
    np.testing.assert_allclose(np.array(jpeg), (255, 0, 0), atol=4)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("animation.gif", "animation.webp", "animation.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        assert pixel(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options) == (255, 0, 0)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (29, 19)), (6, (19, 0)), (8, (0, 29))])
def test_exif_orientation(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (30, 20))
    image.putpixel((0, 0), WHITE)
    image.save(tmp_path / "turned.png", exif=turned(orientation))
    decoded = decode_image(tmp_path / "turned.png", "turned.png")
    assert decoded.size == ((30, 20) if orientation < 5 else (20, 30))
    assert decoded.getpixel(corner) == WHITE


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    assert pixel(Image.new("L", (16, 16), 50), tmp_path / "a.jpg", exif=b"Exif\0\0nonsense") == (50, 50, 50)


def test_errors_are_one_line_with_the_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = tmp_path / "whole.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    data = whole.read_bytes()
    with pytest.raises(UserError, match=r"^a\.jpg cannot be read as a picture: [^\n]*truncated[^\n]*$"):
        decode_image(data[: len(data) // 2], "a.jpg")
    with pytest.raises(UserError, match=r"^a\.jpg is no picture in a format that Pillow reads$"):
        decode_image(b"text", "a.jpg")
    with pytest.raises(UserError, match=r"^b\.jpg does not exist$"):
        decode_image(tmp_path / "b.jpg", "b.jpg")
    with pytest.raises(UserError, match=r"^folder cannot be read as a picture: [^\n]+$"):
        decode_image(tmp_path, "folder")


def jpegs() -> Iterator[tuple[str, bytes]]:
    """JPEGs of every kind that Pillow writes, of even and odd sizes."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    for size in ((64, 48), (33, 17), (1, 1), (250, 3)):
        for mode in ("RGB", "L", "CMYK"):
            image = smooth.resize(size, Image.Resampling.BICUBIC).convert(mode)
            for options in (
                {"subsampling": 0},
                {"subsampling": 1, "quality": 30},
                {"subsampling": 2, "progressive": True},
                {"quality": 100, "optimize": True},
                {"restart_marker_blocks": 2},
                {"exif": turned(6)},
                {"exif": turned(1)},
                {"keep_rgb": True} if mode == "RGB" else {"quality": 5},
            ):
                buffer = io.BytesIO()
                image.save(buffer, "jpeg", **options)
                yield f"{mode} {size} {options}", buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_simplejpeg_gives_the_pixels_of_pillow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise two machines would train on different pictures."""
    pytest.importorskip("simplejpeg")
    kinds = list(jpegs())
    (tmp_path / "a.jpg").write_bytes(kinds[0][1])
    fast = [np.array(decode_image(data, name)) for name, data in kinds]
    from_file = np.array(decode_image(tmp_path / "a.jpg", "a.jpg"))
    monkeypatch.setattr(decode, "simplejpeg", None)
    for (name, data), pixels in zip(kinds, fast, strict=True):
        np.testing.assert_array_equal(pixels, np.array(decode_image(data, name)), err_msg=name)
    np.testing.assert_array_equal(from_file, fast[0])


def test_simplejpeg_is_used_and_leaves_the_verdict_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads what other decoders warn of, such as bytes between two parts."""
    package = pytest.importorskip("simplejpeg")
    calls: list[int] = []
    original = package.decode_jpeg
    monkeypatch.setattr(package, "decode_jpeg", lambda *a: (calls.append(1), original(*a))[1])
    name, data = next(jpegs())
    whole = np.array(decode_image(data, name))
    assert calls == [1]
    odd = data[:-2] + b"stray" + data[-2:]
    np.testing.assert_array_equal(np.array(decode_image(odd, "odd")), whole)
    with pytest.raises(UnreadableError, match=r"^cut cannot be read as a picture: .*truncated"):
        decode_image(data[: len(data) // 2], "cut")
