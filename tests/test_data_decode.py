"""Real files of every mode that Pillow opens, and broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fqgan.data.decode import decode_image
from fqgan.errors import UserError

WHITE = (255, 255, 255)


def pixel(image: Image.Image, path: Path, **options: object) -> object:
    image.save(path, **options)
    decoded = decode_image(path, path.name)
    assert decoded.mode == "RGB"
    return decoded.getpixel((0, 0))


def test_grey_and_bilevel(tmp_path: Path) -> None:
    assert pixel(Image.new("L", (4, 4), 77), tmp_path / "l.png") == (77, 77, 77)
    assert pixel(Image.new("1", (4, 4), 1), tmp_path / "1.png") == WHITE


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
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
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
