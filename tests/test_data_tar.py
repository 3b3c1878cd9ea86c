"""Tars in the WebDataset layout, from files written here and as the package webdataset reads them."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fqgan.base.errors import UnreadableError, UserError
from fqgan.config import DataConfig
from fqgan.data.loader import evaluation_batches, training_batches
from fqgan.data.sources import Request, open_source, tar, tar_index
from fqgan.data.sources.tar import TarSource


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for the cached indices."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def picture(value: int, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(values: range) -> dict[str, bytes]:
    """Grey pictures; their values are the labels too."""
    pairs = [(f"{i:04d}.png", picture(i)) for i in values], [(f"{i:04d}.cls", f"{i}\n".encode()) for i in values]
    return dict(item for pair in zip(*pairs, strict=True) for item in pair)


def error(spec: Path | str, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(spec), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


VARIED = {
    "a/one.v2.jpg": picture(10, "jpeg"),  # the key ends at the first dot
    "a/one.cls": b"3",
    "a.b/two.PNG": picture(20),
    "a.b/two.json": json.dumps({"caption": "x", "label": 4}).encode(),
    "three.mask.png": picture(99),
    "three.webp": picture(30, "webp"),
    "three.json": b'{"cls": 5}',
    "no-picture.txt": b"text",
    "no-picture.cls": b"9",
    "__meta__/four.png": picture(40),
    "b/.hidden.png": picture(50),
    "b/no-dot": b"x",
    "b/five.txt": b"a picture without label",
    "b/five.png": picture(60),
    "b/" + "long" * 60 + ".png": picture(70),
    "b/" + "long" * 60 + ".json": b"[1]",
    "ümlaut.bmp": picture(80, "bmp"),
}


def test_samples_are_grouped_by_their_keys(tmp_path: Path) -> None:
    source = open_source(str(write_tar(tmp_path / "a.tar", VARIED)))
    assert source.classes == ()
    assert source.labels.tolist() == [3, 4, 5, -1, -1, -1]
    assert source.blocks == [6]
    values = [source.read(i)[0].getpixel((0, 0))[0] for i in range(6)]  # pyright: ignore[reportIndexIssue]
    np.testing.assert_allclose(values, [10, 20, 30, 60, 70, 80], atol=2)
    assert source.describe(2) == f"three.webp of {tmp_path / 'a.tar'}"
    assert source.describe(5) == f"ümlaut.bmp of {tmp_path / 'a.tar'}"
    assert source.read(1)[1] == 4


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    paths = [write_tar(tmp_path / "a.tar", VARIED), write_tar(tmp_path / "b.tar", samples(range(100, 120)))]
    theirs = []
    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False):
        kinds = [kind for kind in ("v2.jpg", "png", "webp", "bmp") if kind in sample]
        label = int(sample["cls"]) if "cls" in sample else json.loads(sample.get("json", b"{}"))
        if isinstance(label, dict):
            label = label.get("label", label.get("cls", -1))
        if kinds:
            (kind,) = kinds
            data = Image.open(io.BytesIO(sample[kind])).convert("RGB").tobytes()
            theirs.append((f"{sample['__key__']}.{kind}", data, label if isinstance(label, int) else -1))
    source = TarSource(paths, Request("both"))
    ours = []
    for i in range(len(source)):
        image, label = source.read(i)
        ours.append((source.describe(i).rpartition(" of ")[0].replace("PNG", "png"), image.tobytes(), label))
    assert ours == theirs
    assert len(ours) == 26


def test_tars_written_by_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": f"x/{i}", "png": Image.new("RGB", (8, 8), (i, i, i)), "cls": 2 * i})
    source = open_source(str(tmp_path / "a.tar"))
    assert source.labels.tolist() == [0, 2, 4, 6, 8]
    assert [source.read(i)[0].getpixel((0, 0)) for i in range(5)] == [(i, i, i) for i in range(5)]


def test_globs_folders_and_ranges(tmp_path: Path) -> None:
    for i in range(12):
        write_tar(tmp_path / f"part-{i:02d}.tar", samples(range(2 * i, 2 * i + 2)))
    assert open_source(str(tmp_path)).labels.tolist() == list(range(24))
    assert open_source(str(tmp_path)).blocks == [2] * 12
    assert open_source(f"{tmp_path}/part-1*.tar").labels.tolist() == list(range(20, 24))
    assert open_source(f"{tmp_path}/part-{{09..11}}.tar").labels.tolist() == list(range(18, 24))
    assert open_source(f"{tmp_path}/part-{{0..1}}{{0..1}}.tar").labels.tolist() == [0, 1, 2, 3, 20, 21, 22, 23]
    assert error(f"{tmp_path}/part-{{09..13}}.tar").startswith(f"{tmp_path}/part-12.tar does not exist; did you mean")
    assert error(f"{tmp_path}/x*.tar") == f"{tmp_path}/x*.tar does not exist"
    write_tar(tmp_path / "odd{1}.tar", samples(range(3)))
    assert len(open_source(str(tmp_path / "odd{1}.tar"))) == 3


@pytest.mark.parametrize("prefix", ["", "imagenet1k-"])
def test_splits_side_by_side_are_not_mixed(tmp_path: Path, prefix: str) -> None:
    for i, name in enumerate(("train-0000.tar", "train-0001.tar", "val-0000.tar")):
        write_tar(tmp_path / f"{prefix}{name}", samples(range(i, i + 1)))
    assert open_source(str(tmp_path)).labels.tolist() == [0, 1]
    assert open_source(str(tmp_path), "validation").labels.tolist() == [2]


def test_splits_in_folders(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/train/0.tar", samples(range(2)))
    write_tar(tmp_path / "data/test/0.tar", samples(range(2, 4)))
    assert open_source(str(tmp_path / "data")).labels.tolist() == [0, 1]
    assert open_source(str(tmp_path / "data"), "validation").labels.tolist() == [2, 3]


def test_a_large_tar_is_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "SPAN", 4)
    paths = [write_tar(tmp_path / f"{n}.tar", samples(range(n))) for n in (4, 9, 5)]
    assert TarSource(paths, Request("x")).blocks == [4, 3, 3, 3, 2, 3]


def test_only_as_many_files_as_the_window_stay_open(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{i}.tar", samples(range(i, i + 1))) for i in range(6)]
    source = TarSource(paths, Request("x"))
    source.reserve(2)
    for index in (0, 5, 3, 0, 1):
        assert source.read(index)[1] == index
    assert list(source._open) == [0, 1]


def all_of(stream: Any) -> list[int]:
    found = []
    for images, labels, _ in stream:
        assert (images == labels[:, None, None, None]).all()
        found += labels.tolist()
    return found


def test_forked_and_spawned_processes(tmp_path: Path) -> None:
    """The handle that the parent has opened has one position for all forked processes: seeking would mix them up."""
    source = open_source(str(write_tar(tmp_path / "a.tar", samples(range(60)))))
    empty = len(pickle.dumps(source))
    source.read(7)
    assert all_of(evaluation_batches(source, size=8, batch=2, workers=2)) == list(range(60))
    assert len(pickle.dumps(source)) == empty
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        image, label = pool.apply(source.read, (9,))
    assert (image.getpixel((0, 0)), label) == ((9, 9, 9), 9)


def test_the_order_is_that_of_any_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "SPAN", 5)
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", samples(range(20 * i, 20 * i + 20)))
    source = open_source(str(tmp_path))
    whole: list[list[torch.Tensor]] = []
    for workers, world in ((0, 1), (2, 1), (0, 2)):
        config, options = DataConfig(workers=workers, window=3), {"size": 8, "seed": 1, "batch": 12, "start_step": 0}
        streams = [
            training_batches(source, config, micro_batch=12 // world, rank=rank, world=world, **options)
            for rank in range(world)
        ]
        whole.append([torch.cat([next(stream)[1] for stream in streams]) for _ in range(10)])
        for stream in streams:
            stream.close()
    assert all(torch.equal(a, b) for other in whole[1:] for a, b in zip(whole[0], other, strict=True))
    assert sorted(torch.cat(whole[0][:5]).tolist()) == list(range(60))


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.5, 0.501, 0.9])
def test_a_cut_tar_is_named(tmp_path: Path, keep: float) -> None:
    write_tar(tmp_path / "data/0.tar", samples(range(3)))
    path = write_tar(tmp_path / "data/1.tar", samples(range(30)))
    with tarfile.open(path) as archive:
        length = archive.getmembers()[-1].offset_data + 512
    path.write_bytes(path.read_bytes()[: int(keep * length)])
    assert error(tmp_path / "data").startswith(f"{path} cannot be read as a tar (cut short, or another format?): ")


def test_a_tar_cut_between_two_members_is_named(tmp_path: Path) -> None:
    """The module tarfile takes that for the end, and half of the data would go missing unseen."""
    path = write_tar(tmp_path / "a.tar", samples(range(4)))
    with tarfile.open(path) as archive:
        offsets = [member.offset for member in archive]
    whole = path.read_bytes()
    for offset in (offsets[2], offsets[3], offsets[3] + 100):
        path.write_bytes(whole[:offset])
        assert error(path).endswith("(cut short, or another format?): its end mark is missing")


def test_errors_of_tars(tmp_path: Path) -> None:
    for name, data in (("text", b"text " * 400), ("empty", b""), ("zip", b"PK\3\4" + bytes(2000))):
        (tmp_path / f"{name}.tar").write_bytes(data)
        assert f"{name}.tar cannot be read as a tar (cut short, or another format?)" in error(tmp_path / f"{name}.tar")
    write_tar(tmp_path / "none.tar", {"a.txt": b"x", "b.cls": b"1"})
    assert "none.tar holds no picture: no sample of its tars has one" in error(tmp_path / "none.tar")
    for name, data in (("a.json", b'{"label": {}}'), ("a.json", b'{"label": 1.5}'), ("a.cls", b"-2")):
        write_tar(tmp_path / "label.tar", {"a.png": picture(1), name: data})
        assert "label.tar: the label of a.png must be a number from 0 on or a name, not " in error(
            tmp_path / "label.tar"
        )
    write_tar(tmp_path / "label.tar", {"a.png": picture(1), "a.json": b"{"})
    assert "label.tar: a.json is no readable JSON" in error(tmp_path / "label.tar")
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"))
    assert error(tmp_path / "twice.tar").endswith("twice.tar holds a.png twice in one sample")
    (tmp_path / "x.parquet").touch()
    assert error(tmp_path / "*.*").endswith("holds .parquet and .tar files: name those of one kind")


def test_broken_pictures_and_vanished_tars(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1)[:50], "b.png": b"", "c.png": picture(3)})
    source = open_source(str(path))
    with pytest.raises(UnreadableError, match=r"^a\.png of .*a\.tar cannot be read as a picture"):
        source.read(0)
    with pytest.raises(UnreadableError, match=r"^b\.png of .*a\.tar is no picture"):
        source.read(1)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"a\.tar has become shorter since it was opened$"):
        source.read(2)
    other = TarSource([path := write_tar(tmp_path / "b.tar", samples(range(2)))], Request("b"))
    path.unlink()
    with pytest.raises(UserError, match=r"b\.tar cannot be read: No such file or directory$"):
        other.read(0)


def test_the_index_is_cached(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[Path] = []
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", lambda path, key: (scanned.append(Path(path)), scan(path, key))[1])
    path = write_tar(tmp_path / "a.tar", samples(range(3)))
    for _ in range(2):
        assert TarSource([path], Request("a")).describe(2) == f"0002.png of {path}"
    assert scanned == [path]
    write_tar(path, samples(range(5)))
    assert len(TarSource([path], Request("a"))) == 5
    (cached,) = [file for file in (home / ".cache/fqgan/tar-index").iterdir() if np.load(file)["labels"].size == 5]
    for content in (b"", b"nonsense", cached.read_bytes()[:300]):
        cached.write_bytes(content)
        assert len(TarSource([path], Request("a"))) == 5
    assert len(scanned) == 5
    assert len(list(cached.parent.iterdir())) == 2, "nothing half-written stays"


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, home: Path) -> None:
    home.write_text("a file in the way")
    assert len(open_source(str(write_tar(tmp_path / "a.tar", samples(range(3)))))) == 3
