"""Sets of images with faults that people's own have: read as they are meant, or refused in one line."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_data_sources import names, opened, png, put, refusal, table
from test_data_tar import write_tar

from fqgan.base.errors import UserError
from fqgan.base.printing import in_plain
from fqgan.config import DataConfig
from fqgan.data.sources import open_data, open_source


def arrow(path: Path, labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = pa.table({"image": [{"bytes": png(n), "path": f"{n}.png"} for n in labels], "label": labels})
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_stream(stream, content.schema) as writer:
        writer.write_table(content)


def write_rows(path: Path, *rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_cache_folder_of_datasets_has_splits_and_intermediate_files(tmp_path: Path) -> None:
    arrow(tmp_path / "set-train.arrow", [0, 1, 2])
    arrow(tmp_path / "set-test.arrow", [3])
    arrow(tmp_path / "cache-0123.arrow", [7, 8])
    put(tmp_path, "dataset_info.json")
    assert opened(tmp_path).labels.tolist() == [0, 1, 2]
    assert opened(tmp_path, "validation").labels.tolist() == [3]


def test_saved_splits_of_other_names_are_refused(tmp_path: Path) -> None:
    for name in ("train_a", "train_b", "full"):
        arrow(tmp_path / name / "data-0.arrow", [0])
        put(tmp_path / name, "state.json")
    put(tmp_path, "dataset_dict.json")
    assert "name one" in refusal(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_split_column_of_a_metadata_file_counts(packed: bool, tmp_path: Path) -> None:
    put(tmp_path / "set", "0.png", "1.png", "2.png")
    rows = (
        ["file_name", "label", "split"],
        ["0.png", "cat", "train"],
        ["1.png", "dog", "test"],
        ["2.png", "dog", "train"],
    )
    write_rows(tmp_path / "set/metadata.csv", *rows)
    place = tmp_path / "set"
    if packed:
        place = tmp_path / "set.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for file in (tmp_path / "set").iterdir():
                archive.write(file, file.name)
    train, test = opened(place), opened(place, "validation")
    assert (names(train), train.labels.tolist()) == (["0.png", "2.png"], [0, 1])
    assert (names(test), test.labels.tolist()) == (["1.png"], [1])


def test_metadata_names_pictures_exactly(tmp_path: Path) -> None:
    """Masks that bear the pictures' names must not get their labels."""
    put(tmp_path / "a", "images/0.png", "images/1.png", "masks/0.png", "masks/1.png")
    write_rows(tmp_path / "a/metadata.csv", ["file_name", "label"], ["images/0.png", "x"], ["./images/1.png", "y"])
    source = opened(tmp_path / "a")
    assert (source.classes, source.labels.tolist()) == (("x", "y"), [0, 1, -1, -1])
    put(tmp_path / "b", "p/1.png", "q/1.png", "q/2.png")
    write_rows(tmp_path / "b/metadata.csv", ["file_name", "label"], ["1.png", "x"], ["2.png", "y"])
    source = opened(tmp_path / "b")  # which 1.png is meant cannot be told
    assert (source.classes, source.labels.tolist()) == (("y",), [-1, -1, 0])
    write_rows(tmp_path / "a/metadata.csv", ["file_name", "label"], ["images/0.png", "x"], ["images/0.png", "y"])
    assert "twice" in refusal(tmp_path / "a")


def test_metadata_above_the_folder_of_pictures(tmp_path: Path) -> None:
    put(tmp_path, "images/0.png", "images/1.png")
    write_rows(tmp_path / "metadata.csv", ["file_name", " label"], ["images/1.png", "x"])
    assert opened(tmp_path).labels.tolist() == [-1, 0]


def test_classes_called_by_numbers_are_followed_by_name(tmp_path: Path) -> None:
    put(tmp_path, "t/1/a.png", "t/2/b.png", "t/3/c.png", "v/a.png", "v/b.png")
    write_rows(tmp_path / "v.csv", ["path", "label"], ["v/a.png", "1"], ["v/b.png", "3"])
    source, validation = open_data(DataConfig(source=str(tmp_path / "t"), validation=str(tmp_path / "v.csv")))
    assert validation is not None
    assert [source.classes[label] for label in validation.labels] == ["1", "3"]


def test_names_after_numbers_are_told(tmp_path: Path) -> None:
    put(tmp_path, "v/cat/1.png", "a.png")
    write_rows(tmp_path / "t.csv", ["path", "label"], ["a.png", "1"])
    _, validation = open_data(DataConfig(source=str(tmp_path / "t.csv"), validation=str(tmp_path / "v")))
    assert validation is not None and "may not agree" in validation.findings.warnings[-1]


@pytest.mark.parametrize("form", ["parquet", "tar", "arrow", "metadata"])
def test_a_validation_split_alone_has_the_numbers_of_training(form: str, tmp_path: Path) -> None:
    for split, words in (("train", "abc"), ("test", "bc")):
        if form == "parquet":
            table(tmp_path / f"{split}-0.parquet", image=[png()] * len(words), label=list(words))
        elif form == "tar":
            members = {f"{i}.{kind}": data for i, word in enumerate(words) for kind, data in
                       (("png", png()), ("cls", word.encode()))}  # fmt: skip
            write_tar(tmp_path / f"{split}-0.tar", members)
        elif form == "arrow":
            content = pa.table({"image": [{"bytes": png(), "path": ""}] * len(words), "label": list(words)})
            (tmp_path / split).mkdir()
            with (
                pa.OSFile(str(tmp_path / split / "d.arrow"), "wb") as file,
                pa.ipc.new_stream(file, content.schema) as w,
            ):
                w.write_table(content)
            put(tmp_path, f"{split}/state.json", "dataset_dict.json")
        else:
            put(tmp_path, *(f"{split}/{i}.png" for i in range(len(words))))
            rows = [[f"{i}.png", word] for i, word in enumerate(words)]
            write_rows(tmp_path / split / "metadata.csv", ["file_name", "label"], *rows)
    source = opened(tmp_path, "validation")
    assert (source.classes, source.labels.tolist()) == (("a", "b", "c"), [1, 2])


def test_validation_maps_deep_pictures_as_training_does(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64)[None].repeat(64, 0)
    for name, top in (("t", 60000), ("v", 4000)):
        (tmp_path / name).mkdir()
        Image.fromarray((ramp * top).astype(np.uint16)).save(tmp_path / name / "a.png")
    _, validation = open_data(DataConfig(source=str(tmp_path / "t"), validation=str(tmp_path / "v")))
    assert validation is not None
    assert np.asarray(validation.read(0)[0]).max() == round(4000 / 65535 * 255)


def test_depths_mixed_in_one_set_are_told(tmp_path: Path) -> None:
    for i, top in enumerate((4095, 65535)):
        Image.fromarray(np.full((8, 8), top, np.uint16)).save(tmp_path / f"{i}.png")
    assert "nearly black" in opened(tmp_path).findings.warnings[0]


def test_joined_tars_are_refused_and_hard_links_are_files(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one.tar", {"a.png": png()}).read_bytes()
    (tmp_path / "two.tar").write_bytes(one + one)
    assert "joined with cat" in refusal(tmp_path / "two.tar")
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        entry = tarfile.TarInfo("cat/1.png")
        entry.size = len(png(7))
        archive.addfile(entry, io.BytesIO(png(7)))
        for name, kind in (("dog/2.png", tarfile.LNKTYPE), ("dog/3.png", tarfile.SYMTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "cat/1.png"
            archive.addfile(entry)
    source = opened(tmp_path / "links.tar")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert source.read(1)[0].getpixel((0, 0)) == (7, 7, 7)
    assert source.findings.ignored["links and devices in tars"] == 1


def test_splits_in_folders_of_a_tar_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"train/cat/1.png": png(), "val/cat/2.png": png()})
    assert "--data.labels none" in refusal(path)
    assert len(opened(path, labels="none")) == 2


def test_kaggle_folders_of_splits(tmp_path: Path) -> None:
    put(tmp_path, "train_images/1.png", "test_images/2.png", "sample_submission.csv")
    assert names(opened(tmp_path)) == ["1.png"]
    assert names(opened(tmp_path, "validation")) == ["2.png"]


def test_shards_that_differ_in_their_labels(tmp_path: Path) -> None:
    table(tmp_path / "a/0.parquet", image=[png()])
    table(tmp_path / "a/1.parquet", image=[png()], label=[3])
    source = opened(tmp_path / "a")
    assert source.labels.tolist() == [-1, 3]
    assert "0.parquet has no column label" in source.findings.warnings[0]
    names_of = {"label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    table(tmp_path / "b/0.parquet", names_of, image=[png()], label=[1])
    table(tmp_path / "b/1.parquet", image=[png()], label=[7])
    assert "has the label 7" in refusal(tmp_path / "b")
    table(tmp_path / "b/1.parquet", image=[png()], label=pa.nulls(1))
    source = open_source(str(tmp_path / "b"), classes=("y", "x"))
    assert source.labels.tolist() == [0, -1]


def test_bytes_that_are_no_pictures_do_not_go_before_pictures(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    table(tmp_path / "emb.parquet", embedding=[b"\0\1\2"])
    assert opened(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize(
    ("cells", "labels", "classes"),
    [
        (["10.0", "2.0"], [10, 2], ()),
        (["10", "2", "nan"], [10, 2, -1], ()),
        (["b", "", "a"], [1, -1, 0], ("a", "b")),
        (["10b", "2a"], [0, 1], ("10b", "2a")),
    ],
)
def test_numbers_and_gaps_in_tables(
    cells: list[str], labels: list[int], classes: tuple[str, ...], tmp_path: Path
) -> None:
    put(tmp_path, *(f"{i}.png" for i in range(len(cells))))
    write_rows(tmp_path / "l.csv", ["path", "label"], *([f"{i}.png", cell] for i, cell in enumerate(cells)))
    source = opened(tmp_path / "l.csv")
    assert (source.labels.tolist(), source.classes) == (labels, classes)


def test_numbers_as_texts_sort_as_numbers(tmp_path: Path) -> None:
    source = opened(table(tmp_path / "a.parquet", image=[png()] * 3, label=["10", "2", "1"]))
    assert (source.classes, source.labels.tolist()) == (("1", "2", "10"), [2, 1, 0])


def test_quotes_that_are_not_closed_swallow_no_rows(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    (tmp_path / "l.csv").write_text('path,label\n1.png,"a\n2.png,"b"\n')
    assert "cannot be read as a list" in refusal(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text('path,caption\n1.png,"two\nlines"\n')
    assert opened(tmp_path / "l.csv").captions() == [["two\nlines"]]


def test_folders_of_other_files_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png", "annotations/xmls/a.xml")
    assert opened(tmp_path).classes == ("cat", "dog")


def test_zip_archives_of_other_tools(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("cat\\1.png", "/dog/2.png"):
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, png())
    source = opened(tmp_path / "a.zip")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1])
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("1.png", png() * 9)
    assert "compressed in a way" in refusal(tmp_path / "b.zip")


def test_metadata_of_another_kind_is_left_out_and_told(tmp_path: Path) -> None:
    put(tmp_path / "a", "1.png")
    (tmp_path / "a/metadata.csv").write_text("id,url\n1,http\n")
    assert "it is not used" in opened(tmp_path / "a").findings.warnings[0]
    put(tmp_path / "b", "00000/img0.png")
    (tmp_path / "b/dataset.json").write_text('{"labels": null}')
    assert opened(tmp_path / "b").labels.tolist() == [-1]
    (tmp_path / "b/dataset.json").write_text("[1, 2]")
    assert "it is not used" in opened(tmp_path / "b").findings.warnings[-1]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b""), ("a.txt", b"\n \n"), ("a.tsv", b"\n"), ("a.jsonl", b"[1]\n"), ("a.csv", b"\xff\xfe,\n")],
)
def test_lists_that_are_none(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert name in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "columns",
    [{"label": pa.array([2**64 - 1], pa.uint64())}, {"label": [10**15]}, {"label": [[1, 2]]}],
)
def test_labels_that_are_none(columns: dict[str, Any], tmp_path: Path) -> None:
    assert refusal(table(tmp_path / "a.parquet", image=[png()], **columns))


def test_columns_of_one_name(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([[png()], [1], [2]], names=["image", "label", "label"]), tmp_path / "a.parquet")
    assert "several columns of one name: label" in refusal(tmp_path / "a.parquet")


def test_more_refusals_in_one_line(tmp_path: Path) -> None:
    put(tmp_path, "d/a/1.png", "loop/x.png")
    (tmp_path / "loop/self").symlink_to(tmp_path / "loop/self")
    assert len(opened(tmp_path / "loop")) == 1
    with pytest.raises(UserError, match="fits folders only"):
        open_source(f"{tmp_path}/d/*")
    path = write_tar(tmp_path / "a.tar", {"/data/cat/1.png": png(), "dog/2.png": png()})
    assert len(opened(path)) == 2
    path = write_tar(tmp_path / "b.tar", {"1.png": png(), "1.json": json.dumps({"label": "\ud800"}).encode()})
    assert "must be a number from 0 on or a name" in refusal(path)
    path = write_tar(tmp_path / "c.tar", {"1.png": png(), "1.json": b"3"})
    assert opened(path).labels.tolist() == [3]


def test_names_that_no_terminal_shows() -> None:
    assert in_plain("a\nb\x1b[1m\udcff ü") == "a\\nb\\x1b[1m\\udcff ü"
