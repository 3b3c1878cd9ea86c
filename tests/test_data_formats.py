"""Which formats are read, and what is said of the others."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fqgan.base.errors import UnreadableError
from fqgan.data import formats
from fqgan.data.decode import decode_image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_extensions() -> None:
    always = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    assert always | {".ppm", ".pgm", ".pnm", ".pbm", ".jp2", ".j2k", ".jpx"} <= set(formats.EXTENSIONS)
    assert not set(formats.EXTENSIONS) & set(formats.NEEDS)
    for optional in (".heic", ".heif", ".jxl", ".avif"):
        assert (optional in formats.EXTENSIONS) != (optional in formats.NEEDS)
    assert formats.NEEDS[".dng"].startswith("convert it")
    with pytest.raises(
        UnreadableError, match=r"^a\.svg of b\.tar is no picture [^\n]* here: convert it to PNG or TIFF$"
    ):
        decode_image(b"<svg/>", "a.svg of b.tar")


def test_formats_cost_the_start_nothing() -> None:
    code = "import sys, fqgan.data.formats; assert not {'torch', 'PIL', 'numpy', 'pillow_heif'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(formats.NEEDS, ".heic", "pip install 'fqgan[formats]'")
    monkeypatch.setattr("fqgan.data.decode.register", lambda check: False)
    with pytest.raises(UnreadableError, match=r"^a is no picture [^\n]* here: pip install 'fqgan\[formats\]'$"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(20), "a")


@pytest.mark.parametrize(("package", "kind"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_packages_are_found_by_a_fresh_process(package: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    formats.register(lambda width, height: None)
    picture = Image.fromarray(np.full((64, 64, 3), (200, 100, 50), np.uint8))
    (tmp_path / "a").write_bytes(saved(picture, kind, quality=95))
    (tmp_path / "b").write_bytes(saved(Image.fromarray(np.full((64, 64), 9000, np.uint16)), kind, lossless=True))
    code = (
        "from pathlib import Path; from fqgan.data.decode import decode_image\n"
        "for name in 'ab': print(*decode_image(Path(name), name).getpixel((9, 9)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second = (np.array(line.split(), int) for line in done.stdout.splitlines())
    np.testing.assert_allclose(first, (200, 100, 50), atol=4)
    assert second[0] == second[1] == second[2]


def test_the_size_in_a_jpeg_xl_header(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_jxl")
    formats.register(lambda width, height: None)
    for size in ((64, 64), (8, 256), (300, 200), (5000, 3), (640, 480), (1, 1)):
        for container in (False, True):
            data = saved(Image.new("L", size), "JXL", use_container=container)
            assert formats.jxl_size(data) == size
    monkeypatch.setattr("fqgan.data.decode.MAX_PIXELS", 15)
    for _ in range(2):  # the first read of a process teaches Pillow the format
        with pytest.raises(
            UnreadableError, match=r"^a cannot be read as a picture: 4x4 pixels are more than the 15 allowed"
        ):
            decode_image(saved(Image.new("L", (4, 4)), "JXL"), "a")
