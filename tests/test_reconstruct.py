"""`fqgan reconstruct`: files and folders, whole pictures of any size and aspect, tiles, and what cannot be read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fqgan
from fqgan.cli import main
from fqgan.data.several import distinct
from fqgan.data.sources.base import ImageSource
from fqgan.data.transforms import to_uint8
from fqgan.tokenizer import reconstruction
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.whole import decode_tiled

Refused = Callable[..., str]


def picture(path: Path, width: int = 40, height: int = 40, seed: int = 0, mode: str = "RGB") -> Path:
    """Noise over a gradient."""
    rng = np.random.default_rng(seed)
    values = np.linspace(0, 200, width)[None, :, None] + rng.uniform(0, 55, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the exported tokenizer."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a command prints, which succeeds."""
    capsys.readouterr()
    assert main(["reconstruct", "exported", *line.split(), "--device", "cpu"]) == 0
    return capsys.readouterr().out.splitlines()


def column(path: Path, number: int, width: int, height: int) -> np.ndarray:
    """One of the pictures beside each other in a PNG: (H, W, 3)."""
    with Image.open(path) as image:
        assert image.size == (4 * (width + 2) + 2, height + 4)
        left = 2 + number * (width + 2)
        return np.asarray(image.crop((left, 2, left + width, 2 + height)))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


@pytest.mark.parametrize(
    ("options", "kept", "told"),
    [
        ("--whole", (105, 303), "105x303 padded to 108x304, one piece"),
        ("--whole --size 0 --tile 64", (105, 303), "105x303 padded to 108x304, 2x6 tiles"),
        ("--whole --fit crop", (104, 300), "105x303 cropped to 104x300, one piece"),
        ("--whole --size 100 --tile 64", (100, 289), "100x289 of 105x303 padded to 100x292, 2x6 tiles"),
        ("--tile 32 --size 64", (64, 64), ""),
    ],
)
def test_the_codes_of_a_whole_picture_give_it_back(
    options: str, kept: tuple[int, int], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = picture(folder / "tall.png", 105, 303)
    lines = ran(f"tall.png --out out {options}", capsys)
    tokenizer = fqgan.load_tokenizer("exported")
    stored = np.load("out/tall.npz")
    width, height = kept
    assert (*stored["size"],) == (height, width)
    assert (*stored["own_size"],) == (303, 105)
    assert stored["codes"].shape == (2, -(-height // 4), -(-width // 4))
    with torch.no_grad():
        decoded = decode_tiled(tokenizer, stored["codes"][None], int(stored["tile"]))[0, :, :height, :width]
        if not stored["tile"]:
            assert torch.equal(decoded, tokenizer.decode(stored["codes"][None])[0, :, :height, :width])
    pixels = to_uint8(decoded).permute(1, 2, 0).numpy()
    assert np.array_equal(column(Path("out/tall.png"), 1, width, height), pixels)
    original = column(Path("out/tall.png"), 0, width, height)
    if kept[0] > 100:
        with Image.open(file) as image:
            cut = (0, 1) if "crop" in options else (0, 0)
            assert np.array_equal(original, np.asarray(image)[cut[1] : cut[1] + height, cut[0] : cut[0] + width])
    error = np.square(original.astype(float) - pixels).mean()  # over the picture's own pixels
    assert f"PSNR {10 * np.log10(255**2 / error):.2f} dB{'  ' * bool(told)}{told}" in lines[1]


def test_pictures_of_every_kind_are_upright_and_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Turned by EXIF, transparent, grey, and of 16 bits: as training decodes them."""
    turned = Image.new("RGB", (48, 32), "teal")
    exif = turned.getexif()
    exif[0x0112] = 6
    (folder / "set" / "deep").mkdir(parents=True)
    turned.save(folder / "set" / "turned.jpg", exif=exif)
    Image.new("RGBA", (36, 44), (255, 0, 0, 0)).save(folder / "set" / "clear.png")
    Image.new("L", (44, 36), 77).save(folder / "set" / "grey.png")
    ramp = np.linspace(0, 65535, 40 * 60).reshape(60, 40).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "set" / "deep" / "sixteen.png")
    ran("set --whole --out out --workers 0", capsys)
    assert names(folder / "out") == ["clear.png", "deep/sixteen.png", "grey.png", "turned.png"]
    assert column(folder / "out/turned.png", 0, 32, 48).shape == (48, 32, 3)
    assert (column(folder / "out/clear.png", 0, 36, 44) == 255).all()
    assert (column(folder / "out/grey.png", 0, 44, 36) == 77).all()
    assert np.array_equal(column(folder / "out/deep/sixteen.png", 0, 40, 60)[..., 0], np.round(ramp / 257))


@pytest.mark.parametrize("workers", [0, 2])
def test_codes_and_pictures_do_not_depend_on_what_is_read_together(
    workers: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(7):
        picture(folder / "set" / f"{i}.png", 40 + 8 * (i // 3), 40, seed=i)
    for out, options in (("one", "--batch 1"), ("many", f"--batch 3 --workers {workers}")):
        ran(f"set --whole --out {out} {options}", capsys)
    assert names(folder / "one") == names(folder / "many") == [f"{i}.png" for i in range(7)]
    for i in range(7):
        assert np.array_equal(np.load(f"one/{i}.npz")["codes"], np.load(f"many/{i}.npz")["codes"])


def test_pictures_are_read_as_they_are_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No more of a folder than a batch is in memory."""
    for i in range(20):
        picture(folder / "set" / f"{i:02d}.png")
    counts, known = {"read": 0, "written": 0}, ImageSource.read

    def read(source: ImageSource, index: int) -> tuple[Image.Image, int]:
        counts["read"] += 1
        assert counts["read"] - counts["written"] <= 4 + 1
        return known(source, index)

    def write(path: Path, *_: object) -> None:
        counts["written"] += 1

    monkeypatch.setattr("fqgan.data.sources.folder.FileSource.read", read)
    monkeypatch.setattr(reconstruction, "_write", write)
    ran("set --batch 4 --workers 0 --out out", capsys)
    assert counts == {"read": 20, "written": 20}


def test_names_of_several_folders_keep_their_sub_folders_and_do_not_collide(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a/set/cat/0.png", "a/set/dog/0.png", "b/set/cat/0.png", "0.png", "c/0.png", "c/0.jpg", "c/0.x.png"):
        picture(folder / name)
    ran("a/set b/set 0.png c/0.png a/set/dog/0.png --out out", capsys)
    assert names(folder / "out") == sorted(
        ["set/cat/0.png", "set/dog/0.png", "set-2/cat/0.png", "0.png", "0-2.png", "0-3.png"]
    )
    ran("c --out alone", capsys)
    assert names(folder / "alone") == ["0-2.png", "0.png", "0.x.png"]


def test_names_differ_on_any_file_system() -> None:
    assert [*distinct(["a", "a-2", "a", "A", "b", "a"])] == ["a", "a-2", "a-3", "A-4", "b", "a-5"]


def test_lists_and_archives_are_sets_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "elsewhere" / "x.png")
    picture(folder / "lists" / "y.png")
    (folder / "lists" / "list.txt").write_text("../elsewhere/x.png\ny.png\n")
    with zipfile.ZipFile(folder / "set.zip", "w") as file:
        file.write(folder / "lists/y.png", "deep/y.png")
        file.write(folder / "lists/y.png", "z.png")
    np.savez(folder / "adm.npz", np.zeros((2, 40, 40, 3), np.uint8))
    ran("lists/list.txt set.zip adm.npz --out out", capsys)
    numbered = ["adm/000000.png", "adm/000001.png"]
    assert names(folder / "out") == [*numbered, "list/elsewhere/x.png", "list/y.png", "set/deep/y.png", "set/z.png"]


def test_a_picture_without_an_extension_is_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "x.png").rename(folder / "x")
    ran("x --out out", capsys)
    assert names(folder / "out") == ["x.png"]


def broken(path: Path) -> Path:
    """A picture whose header can be read, and nothing else."""
    path.write_bytes(picture(path).read_bytes()[:60])
    return path


def test_unreadable_pictures_are_named_counted_and_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        picture(folder / "set" / f"{i}.png")
    broken(folder / "set" / "1.png")
    (folder / "set" / "text.png").write_text("no picture")
    lines = ran("set --out out --workers 0", capsys)
    assert names(folder / "out") == ["0.png", "2.png"]
    assert len([line for line in lines if line.startswith("warning: left out: ")]) == 2
    assert f"2 pictures, 2 left out ({Path('out/left_out.json')})" in lines
    left_out = json.loads((folder / "out/left_out.json").read_text())["left_out"]
    assert "1.png cannot be read" in left_out[0] and "text.png is no picture" in left_out[1]
    assert not [path for path in (folder / "out").iterdir() if path.name.startswith(".")]
    picture(folder / "set" / "1.png")
    (folder / "set" / "text.png").unlink()
    ran("set --out out --workers 0", capsys)
    assert names(folder / "out") == ["0.png", "1.png", "2.png"]
    assert not (folder / "out/left_out.json").exists()


def test_too_many_unreadable_pictures_end_it(folder: Path, refused: Refused) -> None:
    picture(folder / "set" / "00.png")
    for i in range(1, 12):
        broken(folder / "set" / f"{i:02d}.png")
    line = refused("reconstruct", "exported", "set", "--out", "out", "--batch", 1)
    assert "11 of the 12 pictures of set cannot be read so far, more than --max-unreadable 0.01 allows" in line
    assert names(folder / "out") == ["00.png"]
    (folder / "set" / "00.png").unlink()
    (folder / "set" / "01.png").unlink()
    assert "no picture could be read; the first: " in refused("reconstruct", "exported", "set", "--out", "none")
    assert not (folder / "none").exists()


def test_the_same_command_writes_again_and_nothing_of_others_is_touched(
    folder: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(folder / "set" / "cat" / "0.png")
    ran("set --out out", capsys)
    before = (folder / "out/cat/0.png").read_bytes()
    (folder / "out/cat/0.png").unlink()  # as after a kill between the two files of a picture
    ran("set --out out", capsys)
    assert (folder / "out/cat/0.png").read_bytes() == before
    np.savez(folder / "out/cat/0.npz", mine=np.zeros(3))
    line = refused("reconstruct", "exported", "set", "--out", "out")
    assert "--out out holds a cat/0.npz of another origin: choose another folder" in line
    (folder / "out/cat/0.npz").unlink()
    line = refused("reconstruct", "exported", "set", "--out", "out")
    assert "--out out holds a cat/0.png of another origin: choose another folder" in line
    (folder / "out/cat/0.png").unlink()
    (folder / "out/left_out.json").write_text('{"mine": 1}')
    assert "left_out.json holds something else" in refused("reconstruct", "exported", "set", "--out", "out")


def test_tiles_below_the_size_of_training_are_warned_of(
    folder: Path, tokenizer: FactorizedTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(folder / "x.png", 80, 80)
    size = tokenizer.config.image_size
    warned = f"warning: tiles of {size // 2} pixels lose quality: training's pictures have {size}"
    assert warned in ran(f"x.png --whole --tile {size // 2} --out out", capsys)
    assert not any("warning" in line for line in ran(f"x.png --whole --tile {size} --out out", capsys))
