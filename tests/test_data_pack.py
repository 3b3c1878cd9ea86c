"""Packing: what comes out is what training would have made of the source."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from packs import CLASSES, Noise, contents, folder, packed, pixels
from PIL import Image

from fqgan.cli import main
from fqgan.config import DataConfig
from fqgan.data import packer, shards
from fqgan.data.loader import training_batches
from fqgan.data.packer import Packer
from fqgan.data.shards import PackOptions
from fqgan.data.sources import open_source
from fqgan.data.transforms import resize_shorter

__all__ = ["folder"]  # fixtures


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


def test_the_estimate_is_near(folder: Path, tmp_path: Path) -> None:
    packer = Packer(open_source(str(folder)), tmp_path / "out", PackOptions(size=32), workers=0)
    needed = packer.bytes_needed
    assert packer.run().bytes == pytest.approx(needed, rel=0.2)
    assert packer.bytes_needed == 0
