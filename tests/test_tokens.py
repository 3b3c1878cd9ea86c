"""The token store: what is read is what was written, damage is told in one line, and a large one opens at once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.schema import changes
from fqgan.data.order import SampleStream
from fqgan.data.token_manifest import File, LeftOut, StoreManifest, StoreOptions, StoreShard
from fqgan.data.token_writer import SHARDS, TokenWriter, images_per_shard
from fqgan.data.tokens import TokenStore, array_header

IMAGES = 23
OPTIONS = StoreOptions("f" * 64, (50, 70_000, 9), (2, 3), 32, crops="flip", images_per_shard=5)
MANIFEST = StoreManifest(OPTIONS, 3, 2, "raw", "made up", {"images": IMAGES}, ("cat", "dog", "emu"), 3)


def made_up(options: StoreOptions = OPTIONS) -> tuple[np.ndarray, np.ndarray]:
    """Codes (images, crops, k, h*w) that reach the ends of their codebooks, and labels."""
    rng = np.random.default_rng(0)
    shape = options.shape(IMAGES)
    codes = np.stack([rng.integers(0, size, (*shape[:2], shape[3])) for size in options.codebook_sizes], 2)
    for factor, size in enumerate(options.codebook_sizes):
        codes[0, 0, factor, 0], codes[-1, -1, factor, -1] = 0, size - 1
    return codes, rng.integers(0, 3, IMAGES)


def export(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")


def written(folder: Path, manifest: StoreManifest = MANIFEST, left_out: tuple[int, ...] = ()) -> Path:
    codes, labels = made_up(manifest.options)
    writer = TokenWriter(folder, manifest, IMAGES)
    for number in writer.begin(export):
        span = range(*writer.ranges[number])
        kept = [i for i in span if i not in left_out]
        writer.write(number, codes[kept], labels[kept], [LeftOut(i, f"{i} is broken") for i in span if i in left_out])
    writer.finish()
    writer.close()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "store")


@pytest.mark.parametrize(("sizes", "dtype"), [((50, 65_536, 9), "uint16"), ((50, 65_537, 9), "uint32")])
def test_round_trip(sizes: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    manifest = replace(MANIFEST, options=replace(OPTIONS, codebook_sizes=sizes))
    codes, labels = made_up(manifest.options)
    store = TokenStore.open(written(tmp_path / "store", manifest), verify=True)
    assert (len(store), store.num_crops, store.num_factors, store.grid) == (IMAGES, 2, 3, (2, 3))
    assert (store.codebook_sizes, store.label_names, store.num_classes) == (sizes, ("cat", "dog", "emu"), 3)
    assert (store.tokenizer_fingerprint, store.tokenizer_path) == ("f" * 64, tmp_path / "store/tokenizer")
    np.testing.assert_array_equal(store.labels, labels)
    for i in range(IMAGES):
        for crop in range(2):
            np.testing.assert_array_equal(store[i, crop][0], codes[i, crop])
            assert store[i, crop][1] == labels[i]
    file = np.load(tmp_path / "store/codes-00001.npy")
    assert (file.shape, file.dtype) == ((5, 2, 3, 6), np.dtype(dtype).newbyteorder("<"))
    np.testing.assert_array_equal(file, codes[5:10])
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        *(f"codes-{i:05d}.npy" for i in range(5)),
        *(f"labels-{i:05d}.npy" for i in range(5)),
        "manifest.json",
        "tokenizer",
    ]


def test_take_gathers_across_shards(folder: Path) -> None:
    codes, labels = made_up()
    store, rng = TokenStore.open(folder), np.random.default_rng(1)
    images, crops = rng.integers(0, IMAGES, 60), rng.integers(0, 2, 60)
    taken, their_labels = store.take(images, crops)
    assert taken.dtype == their_labels.dtype == torch.int64
    np.testing.assert_array_equal(taken.numpy(), codes[images, crops].reshape(60, 3, 2, 3))
    np.testing.assert_array_equal(their_labels.numpy(), labels[images])
    assert store.take([], [])[0].shape == (0, 3, 2, 3)
    for images, crops in (([0, IMAGES], [0, 0]), ([-1], [0]), ([0], [2]), ([0], [-1])):
        with pytest.raises(IndexError):
            store.take(images, crops)
        with pytest.raises(IndexError):
            store[images[-1], crops[-1]]


def test_what_is_left_out_moves_the_others_up(tmp_path: Path) -> None:
    """Shards are ranges of the data set: one may hold fewer images, or none."""
    left_out = (0, 5, 6, 7, 8, 9, 22)
    store = TokenStore.open(written(tmp_path / "store", left_out=left_out), verify=True)
    codes, labels = made_up()
    kept = [i for i in range(IMAGES) if i not in left_out]
    assert [shard.images for shard in store.manifest.shards] == [4, 0, 5, 5, 2]
    assert [each.index for each in store.manifest.unreadable] == list(left_out)
    taken, their_labels = store.take(range(len(kept)), [1] * len(kept))
    np.testing.assert_array_equal(taken.flatten(2), codes[kept, 1])
    np.testing.assert_array_equal(their_labels, labels[kept])
    with pytest.raises(UserError, match="not one picture of made up can be read: 0 is broken"):
        written(tmp_path / "none", left_out=tuple(range(IMAGES)))


def test_a_training_order_runs_over_it(folder: Path) -> None:
    store = TokenStore.open(folder)
    stream = SampleStream(store.blocks, seed=0, window=1)
    assert sorted(index for _, index in stream.take(0, IMAGES)) == list(range(IMAGES))


def test_it_travels_to_a_worker_without_its_codes(folder: Path) -> None:
    """A pickled memory map is a copy of everything in it."""
    store = TokenStore.open(folder)
    store.take([0, 22], [0, 0])
    data = pickle.dumps(store)
    assert len(data) < 10_000
    assert torch.equal(pickle.loads(data).take([7], [1])[0], store.take([7], [1])[0])


def test_its_data_fingerprint_tells_of_changes(folder: Path, tmp_path: Path) -> None:
    before = TokenStore.open(folder).data_fingerprint()
    assert json.loads(json.dumps(before)) == before
    moved = shutil.move(folder, tmp_path / "moved")
    assert changes(before, TokenStore.open(moved).data_fingerprint()) == ""
    fewer = TokenStore.open(written(tmp_path / "fewer", left_out=(3,)))
    assert changes(before, fewer.data_fingerprint()) == f"images: {IMAGES} -> {IMAGES - 1}"
    other = TokenStore.open(written(tmp_path / "other", replace(MANIFEST, label_names=("cat", "dog", "fox"))))
    assert changes(before, other.data_fingerprint()) == "other class names"


def spoil_json(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**content, **values}.items() if value is not None}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "token store {} does not exist: make it with fqgan extract"),
        (
            lambda f: (shutil.rmtree(f), f.write_text("")),
            "{} is a file, no token store: name the folder that fqgan ext",
        ),
        (lambda f: (shutil.rmtree(f), f.mkdir()), "{} is no token store: it has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text(""), "{}/manifest.json is no readable JSON file"),
        (
            lambda f: os.truncate(f / "manifest.json", 900),
            "{}/manifest.json is no readable JSON file",
        ),
        (lambda f: (f / "manifest.json").write_text('{"step": 3}'), "{}/manifest.json is no token store's manifest"),
        (lambda f: spoil_json(f / "manifest.json", format_version=9), "{}/manifest.json: format_version 9 is not 1"),
        (lambda f: spoil_json(f / "manifest.json", options=None), "{}/manifest.json: key 'options' is missing"),
        (lambda f: spoil_json(f / "manifest.json", shards=7), "{}/manifest.json: key shards must be a list, got 7"),
        (lambda f: (f / "codes-00003.npy").unlink(), "token store {}: codes-00003.npy is missing: extract it again"),
        (lambda f: (f / "tokenizer/config.json").unlink(), "token store {}: tokenizer/config.json is missing"),
        (lambda f: os.truncate(f / "codes-00002.npy", 307), "codes-00002.npy is truncated (307 of 848 bytes)"),
        (lambda f: os.truncate(f / "labels-00004.npy", 0), "labels-00004.npy is truncated (0 of 152 bytes)"),
        (lambda f: os.truncate(f / "labels-00000.npy", 999), "labels-00000.npy is too long (999 of 168 bytes)"),
        (
            lambda f: (f / "codes-00001.npy").write_bytes(bytes(848)),
            "token store {}: codes-00001.npy is no array of the type and shape that manifest.json tells",
        ),
    ],
)
def test_refusals(spoil: Callable[[Path], Any], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(UserError) as error:
        TokenStore.open(folder)
    assert message.format(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        ({"count": 22}, "count"),
        ({"num_factors": 2}, "num_factors"),
        ({"num_classes": 2}, "num_classes"),
        ({"data": {"images": [1]}}, "data"),
        ({"options": {"codebook_sizes": []}}, "options.codebook_sizes"),
        ({"options": {"codebook_sizes": [50, 0, 9]}}, "options.codebook_sizes"),
        ({"options": {"grid": [2, 3, 4]}}, "options.grid"),
        ({"options": {"grid": [2, -3]}}, "options.grid"),
        ({"shards": {"images": 6}}, "shards"),
        ({"shards": {"start": 1}}, "shards"),
        ({"shards": {"codes": {"name": "../codes.npy"}}}, "files"),
        ({"shards": {"labels": {"bytes": -1}}}, "files"),
        ({"shards": {"labels": {"sha256": "no sum"}}}, "files"),
    ],
)
def test_a_manifest_that_makes_no_sense_names_the_entry(change: dict[str, Any], entry: str, folder: Path) -> None:
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    for name, value in change.items():
        old = content[name][1] if name == "shards" else content[name]
        if isinstance(value, dict) and name != "data":
            for key, new in value.items():
                old[key] = {**old[key], **new} if isinstance(new, dict) else new
        else:
            content[name] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"manifest.json: {entry} makes no sense"):
        TokenStore.open(folder)


def test_labels_and_codes_beyond_their_ranges_are_told_on_opening(folder: Path) -> None:
    for file, dtype, value, told in (
        ("labels-00001.npy", "<i8", -2, "labels-00001.npy has labels from -2 to"),
        ("labels-00001.npy", "<i8", 3, "to 3, and the store 3 classes"),
        ("codes-00001.npy", "<u4", 70_000, "has codes up to 70000 of factor 0, whose codebook has 50"),
    ):
        whole = (folder / file).read_bytes()
        values = np.frombuffer(whole[128:], dtype).copy()
        values[: len(values) // 2] = value
        (folder / file).write_bytes(whole[:128] + values.tobytes())
        with pytest.raises(UserError) as error:
            TokenStore.open(folder)
        assert told in str(error.value)
        (folder / file).write_bytes(whole)
    TokenStore.open(folder)


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["codes-00002.npy", "labels-00000.npy", "tokenizer/config.json"])
def test_sums_show_what_sizes_do_not(name: str, folder: Path) -> None:
    flip_last_byte(folder / name)
    if name.startswith("labels"):  # its highest byte: the label of no class
        with pytest.raises(
            UserError, match=r"labels-00000.npy has labels from 1 to 72057594037927936, and the store 3 cla"
        ):
            TokenStore.open(folder)
    else:
        TokenStore.open(folder)
    with pytest.raises(UserError, match=f"{name} is damaged: its content has changed since it was written"):
        TokenStore.open(folder, verify=True)


def test_an_unfinished_store_says_so(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "store", MANIFEST, IMAGES)
    codes, labels = made_up()
    assert writer.begin(export) == [0, 1, 2, 3, 4]
    writer.write(1, codes[5:10], labels[5:10], [])
    with pytest.raises(UserError, match=r"store is not finished \(1 shard\(s\) so far\): run the same fqgan ex"):
        TokenStore.open(tmp_path / "store")
    with pytest.raises(UserError, match="still lacks 4 shard"):
        writer.finish()
    writer.close()
    assert TokenWriter(tmp_path / "store", MANIFEST, IMAGES).begin(export) == [0, 2, 3, 4]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_damaged_files_are_made_again(folder: Path) -> None:
    before = contents(folder)
    os.truncate(folder / "codes-00003.npy", 10)
    (folder / "tokenizer/config.json").unlink()
    flip_last_byte(folder / "labels-00001.npy")
    notes: list[str] = []
    writer = TokenWriter(folder, MANIFEST, IMAGES)
    codes, labels = made_up()
    assert writer.begin(export, verify=True, note=notes.append) == [1, 3]
    assert [note.split()[1] for note in notes] == ["tokenizer/config.json", "labels-00001.npy", "codes-00003.npy"]
    for number in (1, 3):
        span = slice(*writer.ranges[number])
        writer.write(number, codes[span], labels[span], [])
    writer.finish()
    writer.close()
    assert contents(folder) == before


def test_a_kill_between_manifest_and_tidying_up(folder: Path) -> None:
    """Records that are left over beside a manifest go away, and nothing else changes."""
    before = contents(folder)
    (folder / ".unfinished").mkdir()
    (folder / ".unfinished/lock").write_text("")
    TokenStore.open(folder)
    written(folder)
    assert contents(folder) == before


def test_a_record_that_a_crash_cut_off_does_not_count(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path / "store", MANIFEST, IMAGES)
    codes, labels = made_up()
    writer.begin(export)
    for number in (0, 1):
        writer.write(number, codes[writer.ranges[number][0] :][:5], labels[:5], [])
    writer.close()
    os.truncate(tmp_path / "store/.unfinished/shard-00000.json", 20)
    assert TokenWriter(tmp_path / "store", MANIFEST, IMAGES).begin(export) == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("images", "crops", "expected"), [(1_281_167, 10, 1252), (50_000, 1, 1024), (4000, 2, 512), (7, 10, 103)]
)
def test_shard_sizes(images: int, crops: int, expected: int) -> None:
    assert images_per_shard(images, crops) == expected
    assert -(-images // expected) <= SHARDS


def sparse(path: Path, header: bytes, size: int) -> File:
    """A file with a header and nothing else on the disk."""
    path.write_bytes(header)
    os.truncate(path, size)
    return File(path.name, size, "0" * 64)


def test_imagenet_opens_at_once(tmp_path: Path) -> None:
    """1.28 M images x 10 crops x 2 x 256 codes, 13 GB, in less than a second; all but the headers are holes."""
    images = 1_281_167
    options = StoreOptions(
        "f" * 64, (16_384, 16_384), (16, 16), 256, "ten", images_per_shard=images_per_shard(images, 10)
    )
    writer = TokenWriter(tmp_path, StoreManifest(options, 2, 10, "ema", "imagenet", {}, num_classes=1000), images)
    shards = []
    for number, (start, stop) in enumerate(writer.ranges):
        n = stop - start
        codes, labels = array_header(options.dtype, options.shape(n)), array_header("<i8", (n,))
        files = (
            sparse(tmp_path / f"codes-{number:05d}.npy", codes, len(codes) + n * 10 * 2 * 256 * 2),
            sparse(tmp_path / f"labels-{number:05d}.npy", labels, len(labels) + 8 * n),
        )
        shards.append(StoreShard(start, stop, n, *files))
    manifest = replace(writer.manifest, count=images, shards=tuple(shards))
    assert sum(file.bytes for file in manifest.files) > 13e9
    (tmp_path / "manifest.json").write_text(json.dumps(schema.to_dict(manifest)))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        store = TokenStore.open(tmp_path)
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    codes, labels = store.take(np.random.default_rng(0).integers(0, images, 256), np.zeros(256))
    print(f"opened in {min(seconds):.2f} to {max(seconds):.2f} s; first batch in {time.perf_counter() - began:.2f} s")
    assert (codes.shape, int(codes.sum()), len(labels)) == ((256, 2, 16, 16), 0, 256)
    assert min(seconds) < 1
