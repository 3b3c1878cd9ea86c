"""Packing: what comes out is what training would have made of the source, whatever interrupts it; and the survey."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import noise
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import DataConfig
from fqgan.data import packer, shards
from fqgan.data.loader import training_batches
from fqgan.data.order import spread_over_blocks
from fqgan.data.packer import Packer
from fqgan.data.shards import PackOptions
from fqgan.data.sources import ImageSource, open_source
from fqgan.data.survey import numbers_of
from fqgan.data.transforms import resize_shorter

Refused = Callable[..., str]
CLASSES = ("cat", "dog", "emu")


class Noise(noise.Noise):
    """A source that knows what it reads."""

    def names(self) -> list[str]:
        return [self.describe(i) for i in range(len(self))]


def pixels(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty pictures of two classes out of three, of many sizes, the smallest 20 pixels."""
    for i in range(40):
        name, suffix = CLASSES[i % 2], ("png", "jpg", "webp")[i % 3]
        file = tmp_path / "pictures" / name / f"{i:02d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels(i, 20 + 3 * i, 60 - i).save(file)
    (tmp_path / "pictures" / CLASSES[2]).mkdir()
    return tmp_path / "pictures"


def packed(source: Path | ImageSource, out: Path, workers: int = 0, share: float = 0.01, **options: Any) -> ImageSource:
    opened = open_source(str(source)) if isinstance(source, Path) else source
    options = {"size": 32, "format": "png", "shuffle": False} | options
    manifest = Packer(opened, out, PackOptions(**options), workers=workers, max_unreadable=share).run()
    assert manifest.complete and not [path for path in out.rglob("*") if path.is_dir() or "writing" in path.name]
    return open_source(str(out))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_pictures_labels_and_classes_survive(folder: Path, tmp_path: Path) -> None:
    """The pictures are those that the resize filter of training makes; none is enlarged."""
    source, result = open_source(str(folder)), packed(folder, tmp_path / "out")
    assert result.classes == CLASSES
    assert result.labels.tolist() == source.labels.tolist() == [0] * 20 + [1] * 20
    for i in range(len(source)):
        original, image = source.read(i)[0], result.read(i)[0]
        expected = resize_shorter(original, 32) if min(original.size) > 32 else original
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    names = [row["path"] for row in pq.read_table(tmp_path / "out")["image"].to_pylist()]
    assert names == [os.path.relpath(Path(source.describe(i)).with_suffix(".png"), folder) for i in range(40)]
    manifest = json.loads((tmp_path / "out/.train.pack.json").read_text())
    assert manifest["shards"][0]["below_size"] == sum(min(source.read(i)[0].size) < 32 for i in range(40)) > 0


@pytest.mark.parametrize("crop_min", [0.0, 0.7])
def test_training_sees_the_same_pictures(crop_min: float, folder: Path, tmp_path: Path) -> None:
    """Centre crops of `size` are the same to the bit. Random crops come from the kept `size / crop_min` pixels by a
    second, smaller reduction; nothing is enlarged."""
    source, result = open_source(str(folder)), packed(folder, tmp_path / "out", crop_min=crop_min)
    assert result.blocks == [40]
    config = DataConfig(crop_min=crop_min or 1.0, workers=0)
    options = {"size": 32, "seed": 1, "batch": 40, "micro_batch": 40, "rank": 0, "world": 1, "start_step": 0}
    (images, labels), (others, other_labels) = (next(training_batches(s, config, **options)) for s in (source, result))
    assert torch.equal(labels, other_labels)
    if crop_min:
        assert max(min(result.read(i)[0].size) for i in range(40)) == 46  # ceil(32 / 0.7)
        assert (images.float() - others.float()).abs().mean() < 3, "of 255, on noise"
    else:
        assert torch.equal(images, others)


def test_the_bytes_do_not_depend_on_the_workers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP", 4)
    monkeypatch.setattr(packer, "CHUNK", 3)
    for workers in (0, 1, 3):
        packed(folder, tmp_path / f"out{workers}", workers, shards=3, shuffle=True, format="jpeg")
    first = contents(tmp_path / "out0")
    assert list(first) == [".train.pack.json", *(f"train-{i:05d}-of-00003.parquet" for i in range(3))]
    assert contents(tmp_path / "out1") == contents(tmp_path / "out3") == first
    file = pq.ParquetFile(tmp_path / "out0/train-00000-of-00003.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 4, 1]
    assert {file.metadata.row_group(0).column(i).compression for i in range(3)} == {"UNCOMPRESSED"}


def test_a_sorted_folder_is_mixed_and_blocks_are_not(folder: Path, tmp_path: Path) -> None:
    mixed = packed(folder, tmp_path / "mixed", shuffle=True)
    assert sorted(mixed.labels) == [0] * 20 + [1] * 20
    assert abs(mixed.labels[:20].sum() - 10) < 6
    blocks = packed(Noise([5, 9, 2]), tmp_path / "blocks", workers=2, shuffle=True, shards=2)
    assert blocks.labels.tolist() == list(range(16))
    for i in range(16):
        expected = resize_shorter(Noise([16]).read(i)[0], 32)
        np.testing.assert_array_equal(np.asarray(blocks.read(i)[0]), np.asarray(expected))


def test_what_needs_no_resizing_keeps_its_bytes(folder: Path, tmp_path: Path) -> None:
    """Except in another format. Packing a packed set again changes nothing at all."""
    packed(folder, tmp_path / "once", size=1000, format="jpeg")
    rows = pq.read_table(tmp_path / "once")["image"].to_pylist()
    files = sorted(folder.rglob("*.*"))
    kept = [row["bytes"] == file.read_bytes() for row, file in zip(rows, files, strict=True)]
    assert kept == [file.suffix == ".jpg" for file in files]
    packed(tmp_path / "once", tmp_path / "twice", size=1000, format="jpeg")
    assert pq.read_table(tmp_path / "twice").equals(pq.read_table(tmp_path / "once"))


@pytest.mark.parametrize(("form", "name", "error"), [("jpeg", "JPEG", 12), ("png", "PNG", 0)])
def test_formats(form: str, name: str, error: float, tmp_path: Path) -> None:
    packed(Noise([3], side=64), tmp_path / "out", size=40, format=form)
    for i, row in enumerate(pq.read_table(tmp_path / "out")["image"].to_pylist()):
        image = Image.open(io.BytesIO(row["bytes"]))
        assert (image.format, image.mode, min(image.size)) == (name, "RGB", 40)
        expected = np.asarray(resize_shorter(Noise([3], side=64).read(i)[0], 40), np.float64)
        assert np.abs(np.asarray(image) - expected).mean() <= error


def test_splits_side_by_side(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "both").mkdir()
    folder.rename(tmp_path / "both/train")
    pixels(0, 50, 40).save(tmp_path / "both/train/cat/more.png")
    for name in CLASSES[:2]:
        (tmp_path / "both/val" / name).mkdir(parents=True)
        pixels(7, 50, 40).save(tmp_path / f"both/val/{name}/x.png")
    out = tmp_path / "out"
    options = ["--out", str(out), "--size", "32", "--workers", "0", "--rows-per-shard", "5"]
    for split, count in (("train", 9), ("validation", 1)):
        assert main(["data", "pack", str(tmp_path / "both"), "--split", split, *options]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(out)
        assert sorted(path.name for path in out.glob(f"{split}-*")) == [
            f"{split}-{i:05d}-of-{count:05d}.parquet" for i in range(count)
        ]
        assert open_source(str(out), split).labels.tolist().count(0) == (21 if split == "train" else 1)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that holds how many pictures may be read."""
    file, read, parent = tmp_path / "gate", packer._read, os.getpid()

    def gated(*arguments: Any) -> Any:
        while arguments[-1] >= int(file.read_text() or 0) and os.path.exists(f"/proc/{parent}"):
            time.sleep(0.002)
        return read(*arguments)

    monkeypatch.setattr(packer, "_read", gated)
    monkeypatch.setattr(packer, "CHUNK", 2)
    return file


def in_a_child(*argv: object) -> int:
    """Start the command in a forked process of its own, its output in `out.log`."""
    if child := os.fork():
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.stdout = sys.stderr = open("out.log", "w", buffering=1)  # noqa: SIM115
        code = main([str(argument) for argument in argv])
    finally:
        os._exit(code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_is_interrupted_goes_on(
    number: signal.Signals,
    folder: Path,
    tmp_path: Path,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["data", "pack", folder, "--size", "32", "--shards", "8", "--workers", "1", "--out"]
    for first in range(3):
        gate.write_text(str(5 * first + 8))  # five pictures a file: some of the next one's, too
        child = in_a_child(*command, "out")
        waiting = tmp_path / "out/.train-unfinished"
        while len(list(waiting.glob("*.parquet"))) <= first or not list(waiting.glob(".*.writing")):
            assert not os.waitpid(child, os.WNOHANG)[0], (tmp_path / "out.log").read_text()
            time.sleep(0.002)
        assert not list((tmp_path / "out").glob("*.parquet")), "a part of the set is not taken for all of it"
        os.kill(child, number)
        time.sleep(0.5)  # on a loaded machine the worker was through before its parent heard of the signal
        gate.write_text("40")  # a worker ends after what it is at
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if number == signal.SIGINT:
            assert code == 130
            assert "files finished; the same command resumes" in (tmp_path / "out.log").read_text().splitlines()[-1]
            assert not list(waiting.glob(".*.writing"))
    capsys.readouterr()
    assert main([str(argument) for argument in (*command, "out")]) == 0
    text = capsys.readouterr().out
    assert ", 15 of them done;" in text
    assert "train-00002-of" not in text
    assert "train-00003-of" in text
    assert main([str(argument) for argument in (*command, "straight")]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    capsys.readouterr()
    assert main([str(argument) for argument in (*command, "out")]) == 0
    assert "out is packed already" in capsys.readouterr().out


def test_a_full_disk_keeps_the_finished_files(
    folder: Path, tmp_path: Path, mounted: Callable[[str], Path], refused: Refused
) -> None:
    command = f"data pack {folder} --size 32 --format png --shards 4 --workers 1 --out".split()
    assert main([*command, str(tmp_path / "straight")]) == 0
    whole = sum(path.stat().st_size for path in (tmp_path / "straight").iterdir())
    out = mounted(f"size={whole // 2 // 1024}k") / "out"
    line = refused(*command, out)
    assert "of-00004.parquet cannot be written: No space left on device: free some space" in line
    assert line.endswith("; the same command resumes")
    assert list(out.rglob("train-0*.parquet")) and not list(out.rglob("*.writing"))
    mounted(f"size={2 * whole}")
    assert main([*command, str(out)]) == 0
    assert contents(out) == contents(tmp_path / "straight")


def test_a_disk_that_is_full_at_the_end_of_a_file(
    folder: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above without a mount."""

    def fail(path: Path) -> None:
        if "00002" in path.name:
            raise OSError(errno.ENOSPC, "full")

    command = [
        "data",
        "pack",
        str(folder),
        "--size",
        "32",
        "--shards",
        "3",
        "--workers",
        "0",
        "--out",
        tmp_path / "out",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "sync", fail)
        assert "train-00002-of-00003.parquet cannot be written: No space left" in refused(*command)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [
        ".train-unfinished",
        ".train.pack.json",
        "lock",
        *(f"train-{i:05d}-of-00003.parquet" for i in range(2)),
    ]
    assert main([str(argument) for argument in command]) == 0


def test_unreadable_pictures_are_left_out_and_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [0, 9, 10, 25, 39]
    result = packed(Noise([40], 33, unreadable=bad), tmp_path / "out", workers=2, shards=4)
    assert result.labels.tolist() == [i for i in range(40) if i not in bad]
    manifest = json.loads((tmp_path / "out/.train.pack.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [8, 9, 9, 9]
    assert [shard["unreadable"] for shard in manifest["shards"]] == [
        ["noise 0 is unreadable", "noise 9 is unreadable"],
        ["noise 10 is unreadable"],
        ["noise 25 is unreadable"],
        ["noise 39 is unreadable"],
    ]
    file = folder / "cat/00.png"
    file.write_bytes(file.read_bytes()[:200])
    options = ["--size", "32", "--workers", "1", "--out", str(tmp_path / "cli")]
    assert main(["data", "pack", str(folder), *options]) == 0
    text = capsys.readouterr().out
    assert f"warning: left out: {file} cannot be read as a picture" in text
    assert "1 unreadable ones left out" in text


def test_too_many_unreadable_pictures_end_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="noise 10 is unreadable; 11 of the 40 pictures of noise cannot be read so far, mo"
    ):
        packed(Noise([40], 33, unreadable=range(20)), tmp_path / "out", share=0.2)
    assert not (tmp_path / "out").exists(), "nothing was finished, nothing is left"
    with pytest.raises(UserError, match=r"noise 7 is unreadable; 1 of the 40 .* more than --max-unreadable 0 allows"):
        packed(Noise([40], 33, unreadable=[7, 30]), tmp_path / "out", share=0.0, shards=8)
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 1, "finished files are kept"
    assert (
        packed(Noise([40], 33, unreadable=[7, 30]), tmp_path / "out", share=0.1, shards=8).labels.tolist().count(7) == 0
    )
    with pytest.raises(UserError, match="not one picture of noise can be read"):
        packed(Noise([5], unreadable=range(5)), tmp_path / "none")


def test_another_source_or_other_options_are_refused(folder: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    command = ["data", "pack", folder, "--out", out, "--size", "32", "--workers", "0"]
    assert main([str(argument) for argument in command]) == 0
    before = contents(out)
    line = refused(*command, "--quality", "90", "--crop-min", "0.8")
    assert f"{out} was begun with other settings (crop_min: 0.0 -> 0.8, quality: 95 -> 90): restore them or" in line
    label = folder / "cat/00.png"
    label.rename(folder / "emu/00.png")
    told = f"{out} is packed from {folder}, which is another source or has changed since (other "
    assert told in refused(*command)
    (folder / "emu/00.png").rename(label)
    pixels(99, 60, 60).save(label)
    assert "(other pixels)" in refused(*command)
    (out / ".train.pack.json").unlink()
    assert "out exists and is no packed set" in refused(*command)
    (out / ".train.pack.json").write_bytes(before[".train.pack.json"])
    assert contents(out) == before


def test_the_same_source_by_another_path_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    for source in ("pictures", str(folder)):
        assert main(["data", "pack", source, "--out", "out", "--size", "32", "--workers", "0"]) == 0
    assert "out is packed already" in capsys.readouterr().out


def test_a_lost_file_is_made_again(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out", shards=4)
    before = contents(tmp_path / "out")
    (tmp_path / "out/train-00001-of-00004.parquet").unlink()
    packed(folder, tmp_path / "out", shards=4)
    assert contents(tmp_path / "out") == before


def test_two_processes_do_not_pack_into_one_folder(folder: Path, tmp_path: Path) -> None:
    first = Packer(open_source(str(folder)), tmp_path / "out", PackOptions(size=32), workers=0)
    second = Packer(open_source(str(folder)), tmp_path / "out", PackOptions(size=32), workers=0)
    told = []

    def meanwhile(count: int) -> None:
        with pytest.raises(UserError, match="is in use by another process") as caught:
            second.run()
        told.append(caught)

    first.run(meanwhile)
    assert told
    assert second.run().complete, "it sees what the first one did"


def test_the_estimate_is_near(folder: Path, tmp_path: Path) -> None:
    packer = Packer(open_source(str(folder)), tmp_path / "out", PackOptions(size=32), workers=0)
    needed = packer.bytes_needed
    assert packer.run().bytes == pytest.approx(needed, rel=0.2)
    assert packer.bytes_needed == 0


def test_survey_of_a_folder(folder: Path) -> None:
    (folder / "cat/zz.jpg").write_bytes(b"no picture")
    turned = pixels(0, 30, 50)
    turned.getexif()[0x0112] = 6
    turned.save(folder / "dog/zz.jpg", exif=turned.getexif())  # upright: 50 x 30
    cut = folder / "dog/01.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    numbers = numbers_of(open_source(str(folder)), scan=0, sizes=(25, 256), workers=2)
    sizes = [(20 + 3 * i, 60 - i) for i in range(40)] + [(50, 30)]
    assert (numbers["kind"], numbers["pictures"], numbers["scanned"]) == ("image folder", 42, 42)
    assert numbers["classes"] == {"cat": 21, "dog": 21, "emu": 0}
    assert (numbers["labels"], numbers["unlabelled"], numbers["blocks"]["count"]) == ([0, 1], 0, 1)
    for name, values in (
        ("width", [w for w, _ in sizes]),
        ("height", [h for _, h in sizes]),
        ("shorter_side", list(map(min, sizes))),
    ):
        assert numbers[name] == {"min": min(values), "median": np.median(values), "max": max(values)}
    assert numbers["below"] == {"25": sum(min(size) < 25 for size in sizes), "256": 41}
    assert numbers["formats"] == {"PNG": 14, "JPEG": 14, "WEBP": 13}
    files = [path for path in folder.rglob("*.*") if path.name != "zz.jpg" or path.parent.name == "dog"]
    assert numbers["mean_bytes"] == round(np.mean([path.stat().st_size for path in files]))
    assert [line.split(" is ")[0] for line in numbers["unreadable"]] == [str(folder / "cat/zz.jpg")]
    decoded = numbers_of(open_source(str(folder)), scan=0, decode=True)["unreadable"]
    assert [str(cut) in line for line in decoded] == [False, True], "a file that is cut short has a whole header"


def test_survey_of_other_sources(folder: Path, tmp_path: Path) -> None:
    source = packed(folder, tmp_path / "out", format="jpeg")
    numbers = numbers_of(source, scan=10)
    assert (numbers["kind"], numbers["scanned"], numbers["formats"]) == ("parquet files", 10, {"JPEG": 10})
    numbers = numbers_of(Noise([4, 4], side=30, unreadable=[3]), scan=0, workers=1)
    assert numbers["unreadable"] == ["noise 3 is unreadable"]
    assert (numbers["blocks"]["count"], numbers["formats"], numbers["mean_bytes"]) == (2, {}, None)
    assert (numbers["shorter_side"]["min"], numbers["modes"]) == (30, {"RGB": 7})


def test_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pictures keep their bytes, names and labels, and are seen with their formats."""
    monkeypatch.setenv("HOME", str(tmp_path))
    buffer = io.BytesIO()
    pixels(3, 40, 33).save(buffer, "JPEG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("x/a.jpg", buffer.getvalue()), ("x/a.cls", b"4"), ("x/b.jpg", buffer.getvalue()[:-99])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = open_source(str(tmp_path / "a.tar"))
    numbers = numbers_of(source, scan=0, decode=True)
    assert (numbers["kind"], numbers["labels"], numbers["unlabelled"]) == ("WebDataset tars", [4, 4], 1)
    assert (numbers["formats"], numbers["mean_bytes"]) == ({"JPEG": 1}, len(buffer.getvalue()))
    assert len(numbers["unreadable"]) == 1
    assert packed(source, tmp_path / "out", size=100, format="jpeg").labels.tolist() == [4]
    rows = pq.read_table(tmp_path / "out")["image"].to_pylist()
    assert rows == [{"bytes": buffer.getvalue(), "path": "x/a.jpg"}]


@pytest.mark.parametrize(
    ("blocks", "count", "most", "expected"),
    [
        ([10], 0, 4, range(10)),
        ([10], 20, 4, range(10)),
        ([10], 5, 4, [0, 2, 4, 6, 8]),
        ([4, 4, 4, 4], 4, 2, [0, 2, 8, 10]),
        ([4, 4, 4, 4], 3, 2, [0, 8, 10]),
        ([1, 8, 1, 8], 8, 4, [0, 1, 5, 9, 10, 14]),
    ],
)
def test_spread_over_blocks(blocks: list[int], count: int, most: int, expected: Any) -> None:
    assert spread_over_blocks(blocks, count, most) == list(expected)


def test_info_prints_and_writes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dog/broken.png").write_bytes(b"x")
    out = tmp_path / "new/info.json"
    assert main(["data", "info", str(folder), "--json", str(out), "--size", "25", "--scan", "0"]) == 0
    text = capsys.readouterr().out
    for words in ("image folder", "3: cat 20, dog 21, emu 0", "0 to 1", "20 to 137", "below 25 px", "broken.png"):
        assert words in text
    assert text.splitlines()[-1] == str(out)
    numbers = json.loads(out.read_text())
    assert (numbers["pictures"], len(numbers["unreadable"])) == (41, 1)
    assert main(["data", "info", str(folder / "cat"), "--scan", "3", "--workers", "0"]) == 0
    assert "3, their headers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "name what to do: fqgan data info|pack ..."),
        ("pck x", "cannot do 'pck'; did you mean 'pack'?"),
        ("info", "Missing from fqgan data info: SOURCE"),
        ("info nowhere", "nowhere does not exist"),
        ("info photos --scann 3", "unknown option --scann; did you mean '--scan'?"),
        ("info photos --scan -1", "--scan must be at least 0, got -1"),
        ("info photos --json .", ""),
        ("pack photos", "Missing from fqgan data pack: --out PATH"),
        ("pack photos --out x --qualty 3", "unknown option --qualty; did you mean '--quality'?"),
        ("pack photos --out x --quality 101", "--quality must be at most 100, got 101"),
        ("pack photos --out x --size 0", "--size must be at least 1, got 0"),
        ("pack photos --out x --crop-min 1.5", "--crop-min must be between 0 and 1, got 1.5"),
        ("pack photos --out x --format gif", "invalid choice 'gif' for argument '--format'"),
        ("pack nowhere --out x", "nowhere does not exist"),
        ("pack photos --out file", "--out file is a file: name a folder"),
    ],
)
def test_mistakes(line: str, message: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if "--json ." in line:
        (tmp_path / "x").mkdir()
        line, message = line.replace("--json .", "--json x"), "--json x is a folder: name a file"
    assert message in refused("data", *line.split())
    assert not (tmp_path / "x").exists() or not any((tmp_path / "x").iterdir())
