"""What users' own folders, lists, archives and tables are taken for, and what is said of them."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_data_tar import write_tar

from fqgan.base.errors import UserError
from fqgan.config import DataConfig, SourceOptions
from fqgan.data.sources import ImageSource, open_data, open_source


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def put(root: Path, *names: str) -> Path:
    """Pictures (and empty files of other kinds) below a folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png() if path.suffix in (".png", ".jpg", ".JPEG") else b"")
    return root


def table(path: Path, features: dict[str, Any] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = pa.table(columns)
    if features:
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(content, path)
    return path


def opened(path: Path, split: str = "train", **options: Any) -> ImageSource:
    return open_source(str(path), split, SourceOptions(**options))


def names(source: ImageSource) -> list[str]:
    return [os.path.basename(source.describe(i).split(" of ")[0]) for i in range(len(source))]


def refusal(path: Path, split: str = "train", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "words",
    [("train", "test"), ("training", "testing"), ("train", "dev"), ("Train", "Valid"), ("train2017", "val2017")],
)
def test_split_folders_are_splits_where_they_cover_all_pictures(words: tuple[str, str], tmp_path: Path) -> None:
    train, other = words
    put(tmp_path, f"{train}/cat/1.png", f"{train}/dog/2.png", f"{other}/dog/3.png", "annotations/x.xml", "README.md")
    source, validation = opened(tmp_path), opened(tmp_path, "validation")
    assert (names(source), source.classes, source.labels.tolist()) == (["1.png", "2.png"], ("cat", "dog"), [0, 1])
    assert names(validation) == ["3.png"]
    assert (validation.classes, validation.labels.tolist()) == (("cat", "dog"), [1])  # training's numbers
    assert source.findings.split == "train" and train in source.findings.split_rule


def test_class_folders_named_like_splits_stay_classes_and_are_told(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "train/1.png", "bus/2.png", "test/3.png"))
    assert source.classes == ("bus", "test", "train")
    assert "named like splits" in source.findings.warnings[0]


def test_one_split_alone_serves_for_all_and_is_told(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "test/cat/1.png", "test/dog/2.png"))
    assert (len(source), source.findings.split) == (2, "test")
    assert "read as train" in source.findings.warnings[0]


def test_folders_inside_class_folders_and_wrapping_folders(tmp_path: Path) -> None:
    source = opened(put(tmp_path / "a", "n01/images/1.JPEG", "n01/boxes.txt", "n02/images/2.JPEG"))
    assert (source.classes, source.labels.tolist(), source.findings.ignored[".txt"]) == (("n01", "n02"), [0, 1], 1)
    source = opened(put(tmp_path / "b", "images/cat/1.png", "images/dog/2.png"))
    assert source.classes == ("cat", "dog")
    source = opened(put(tmp_path / "c", "images/1.png", "images/2.png", "annotations/1.xml"))
    assert (source.classes, source.labels.tolist()) == ((), [-1, -1])


def test_a_stray_picture_above_class_folders_takes_no_label_away(tmp_path: Path) -> None:
    source = opened(put(tmp_path, "cover.jpg", "cat/1.png", "cat/2.png", "dog/3.png"))
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [-1, 0, 0, 1])
    assert "1 of the pictures lie above the class folders" in source.findings.warnings[0]


def test_what_systems_leave_behind_is_no_class(tmp_path: Path) -> None:
    put(
        tmp_path, "cat/1.png", "dog/2.png", "@eaDir/x.png", "__MACOSX/._1.png", "thumbnails128x128/1.png", "cat/._1.png"
    )
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog")
    assert names(source) == ["1.png", "2.png"]
    assert source.findings.ignored["folder @eaDir"] == 1


def test_links_that_form_a_loop_are_read_once(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "cat/again").symlink_to(tmp_path)
    (tmp_path / "dog/self").symlink_to(tmp_path / "dog")
    source = opened(tmp_path)
    assert (names(source), source.classes) == (["1.png", "2.png"], ("cat", "dog"))
    assert source.findings.ignored["links to folders read already"] >= 2


def test_folders_and_pipes_named_like_pictures_are_none(tmp_path: Path) -> None:
    put(tmp_path, "dog.jpg/1.png", "cat/2.png")
    os.mkfifo(tmp_path / "cat/pipe.png")
    source = opened(tmp_path)
    assert source.classes == ("cat", "dog.jpg")
    assert source.findings.ignored["pipes and devices"] == 1
    assert "a pipe" in refusal(tmp_path / "cat/pipe.png")


def test_numbers_as_folder_names(tmp_path: Path) -> None:
    """As text, 10 sorts before 2, and label and folder would disagree."""
    source = opened(put(tmp_path / "a", *(f"{i}/x.png" for i in range(12))))
    assert source.classes == tuple(map(str, range(12)))
    assert [int(Path(source.describe(i)).parent.name) for i in range(12)] == source.labels.tolist()
    assert not source.findings.warnings
    source = opened(put(tmp_path / "b", "3/x.png", "20/x.png", "100/x.png"))
    assert source.classes == ("3", "20", "100")
    assert "not 0 to 2" in source.findings.warnings[0]


def test_folders_named_like_shards_are_no_classes_unless_asked(tmp_path: Path) -> None:
    put(tmp_path, "00000/1.png", "01000/2.png", "02000/3.png")
    source = opened(tmp_path)
    assert (source.classes, source.labels.tolist()) == ((), [-1, -1, -1])
    assert "--data.labels folders" in source.findings.warnings[0]
    assert opened(tmp_path, labels="folders").classes == ("00000", "01000", "02000")
    assert opened(put(tmp_path / "c", "x/1.png", "y/2.png"), labels="none").classes == ()


def test_a_class_list_orders_labels_and_validation_follows_training(tmp_path: Path) -> None:
    put(tmp_path, "t/cat/1.png", "t/dog/2.png", "t/emu/3.png", "v/emu/4.png", "v/yak/5.png")
    (tmp_path / "names").write_text("emu\ndog\ncat\n")
    config = DataConfig(source=str(tmp_path / "t"), validation=str(tmp_path / "v"), classes=str(tmp_path / "names"))
    source, validation = open_data(config)
    assert validation is not None
    assert (source.classes, source.labels.tolist()) == (("emu", "dog", "cat"), [2, 1, 0])
    assert validation.labels.tolist() == [0, -1]
    assert "yak" in validation.findings.warnings[0]
    _, validation = open_data(DataConfig(source=str(tmp_path / "t"), validation=str(tmp_path / "v")))
    assert validation is not None and validation.labels.tolist() == [2, -1]


def test_unpacked_pictures_go_before_archives_beside_them(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg")
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", {"n01.tar": b"x"})
    source = opened(tmp_path)
    assert (names(source), source.findings.ignored[".tar"]) == (["1.jpg", "2.jpg"], 1)
    assert names(opened(tmp_path, "validation")) == ["3.jpg", "4.jpg"]


def test_kaggle_validation_pictures_get_the_labels_of_their_table(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC/Data/CLS-LOC"
    put(root, "train/n01/1.JPEG", "train/n02/2.JPEG", "val/ILSVRC2012_val_00000001.JPEG", "val/b.JPEG")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n02 1 2 3 4\nb,n01 1 2 3 4\n"
    )
    source = opened(root, "validation")
    assert (source.classes, source.labels.tolist()) == (("n01", "n02"), [1, 0])


@pytest.mark.parametrize(
    "layout",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),
        ("plain/train-0.parquet", "plain/train-1.parquet", "plain/test-0.parquet"),
    ],
)
def test_clones_of_hub_data_sets(layout: tuple[str, ...], tmp_path: Path) -> None:
    for i, name in enumerate(layout):
        table(tmp_path / name, image=[png(i)], label=[i])
    put(tmp_path, "README.md")
    assert opened(tmp_path).labels.tolist() == [0, 1]
    assert opened(tmp_path, "validation").labels.tolist() == [2]
    assert opened(Path(f"{tmp_path}/**/*.parquet")).labels.tolist() == [0, 1]


def test_metadata_tables_beside_tars_are_no_pictures(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"0.jpg": png(), "0.txt": b"a cat", "1.jpg": png(), "1.txt": b"a dog"})
    table(tmp_path / "00000.parquet", url=["u"], caption=["c"])
    put(tmp_path, "00000_stats.json")
    source = opened(tmp_path)
    assert (len(source), source.captions()) == (2, [["a cat"], ["a dog"]])
    assert source.findings.ignored[".parquet"] == source.findings.ignored[".json"] == 1


def test_lists(tmp_path: Path) -> None:
    put(tmp_path, "d/a.png", "d/b.png", "d/c.png")
    (tmp_path / "l.txt").write_text("d/a.png\nd/c.png\n")
    (tmp_path / "caffe.txt").write_text("d/a.png 2\nd/c.png 0\n")
    (tmp_path / "l.csv").write_text("file,label,caption\nd/b.png,dog,one\nd/a.png,cat,two\n")
    (tmp_path / "l.tsv").write_text(f"path\tclass\n{tmp_path}/d/a.png\t1\n")
    (tmp_path / "l.jsonl").write_text('{"file_name": "d/c.png", "label": 4}\n{"file_name": "d/a.png", "label": null}\n')
    assert (names(opened(tmp_path / "l.txt")), opened(tmp_path / "l.txt").classes) == (["a.png", "c.png"], ())
    assert opened(tmp_path / "caffe.txt").labels.tolist() == [2, 0]
    source = opened(tmp_path / "l.csv")
    assert (names(source), source.classes, source.labels.tolist()) == (["b.png", "a.png"], ("cat", "dog"), [1, 0])
    assert source.captions() == [["one"], ["two"]]
    assert opened(tmp_path / "l.tsv").labels.tolist() == [1]
    assert opened(tmp_path / "l.jsonl").labels.tolist() == [4, -1]
    (tmp_path / "s.csv").write_text("file,label,split\nd/a.png,cat,train\nd/b.png,dog,test\n")
    test = opened(tmp_path / "s.csv", "validation")
    assert (names(test), test.classes, test.labels.tolist()) == (["b.png"], ("cat", "dog"), [1])
    (tmp_path / "l.txt").write_text("d/a.png\nd/x.png\n")
    assert "d/x.png" in refusal(tmp_path / "l.txt")


def test_metadata_in_a_folder_gives_labels(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "b.png", "label": "x"}\n{"file_name": "gone.png", "label": "y"}\n'
    )
    source = opened(tmp_path)
    assert (source.classes, source.labels.tolist()) == (("x",), [-1, 0])
    assert any("gone.png" in warning for warning in source.findings.warnings)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_archives(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name in ("set/train/cat/1.png", "set/train/dog/2.png", "set/val/cat/3.png", "__MACOSX/set/._1.png"):
            archive.writestr(name, png(len(name)))
    source = opened(tmp_path / "a.zip")
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert source.read(1)[0].getpixel((0, 0)) == (19, 19, 19)
    assert len(opened(tmp_path / "a.zip", "validation")) == 1
    with zipfile.ZipFile(tmp_path / "style.zip", "w", method) as archive:
        archive.writestr("00000/img0.png", png())
        archive.writestr("00000/img1.png", png())
        archive.writestr("dataset.json", json.dumps({"labels": [["00000/img0.png", 3], ["00000/img1.png", 1]]}))
    assert opened(tmp_path / "style.zip").labels.tolist() == [3, 1]
    with zipfile.ZipFile(tmp_path / "flat.zip", "w", method) as archive:
        archive.writestr("pets/1.png", png())
    assert opened(tmp_path / "flat.zip").classes == ()
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:100])
    assert "cannot be read as a zip archive" in refusal(tmp_path / "cut.zip")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "d/x.tar.gz"])
def test_compressed_archives_are_refused_with_the_command_that_unpacks(name: str, tmp_path: Path) -> None:
    path = put(tmp_path, name) / name
    assert "tar xf" in refusal(path if name[0] == "x" else path.parent)


@pytest.mark.parametrize(
    ("image", "label"), [("img", "labels"), ("img", "fine_label"), ("picture", "class"), ("b", "cls")]
)
def test_columns_by_other_names(image: str, label: str, tmp_path: Path) -> None:
    features = {label: {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    source = opened(
        table(tmp_path / "a.parquet", features, **{image: [png(5), png(6)], label: [1, 0], "extra": [0, 0]})
    )
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert source.findings.labels_from == f"column {label}"
    assert source.findings.ignored["column extra"] == 1
    assert source.read(0)[0].getpixel((0, 0)) == (5, 5, 5)


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", one=[png(1)], two=[png(2)], kind=["x"], label=[7])
    assert "choose with --data.image-column" in refusal(path)
    source = opened(path, image_column="two", label_column="kind")
    assert (source.read(0)[0].getpixel((0, 0)), source.classes) == ((2, 2, 2), ("x",))
    assert "its columns: one, two, kind, label" in refusal(path, image_column="three")


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (["b", "a", None], [1, 0, -1], ("a", "b")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), [1, 0, 1], ("a", "b")),
        ([True, False, None], [1, 0, -1], ("false", "true")),
        ([2.0, 0.0, None], [2, 0, -1], ()),
        ([[2], [0], [1]], [2, 0, 1], ()),
        (pa.nulls(3), [-1, -1, -1], ()),
    ],
)
def test_label_columns_of_other_types(values: Any, labels: list[int], classes: tuple[str, ...], tmp_path: Path) -> None:
    source = opened(table(tmp_path / "a.parquet", image=[png()] * 3, label=values))
    assert (source.labels.tolist(), source.classes) == (labels, classes)


def test_class_names_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    def part(name: str, words: list[str]) -> None:
        table(tmp_path / name, {"label": {"_type": "ClassLabel", "names": words}}, image=[png()], label=[0])

    part("a.parquet", ["x", "y"])
    part("b.parquet", ["y", "x"])
    assert opened(tmp_path).labels.tolist() == [0, 1]  # the same names in another order: by name
    part("b.parquet", ["y", "z"])
    assert "name other classes" in refusal(tmp_path)


def test_saved_data_sets(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1]), ("test", [2])):
        folder = tmp_path / split
        folder.mkdir()
        content = pa.table({"image": [{"bytes": png(n), "path": f"{n}.png"} for n in labels], "label": labels})
        file = str(folder / "data-00000-of-00001.arrow")
        with pa.OSFile(file, "wb") as stream, pa.ipc.new_stream(stream, content.schema) as writer:
            writer.write_table(content)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = opened(tmp_path)
    assert source.labels.tolist() == [0, 1]
    assert source.read(1)[0].getpixel((0, 0)) == (1, 1, 1)
    assert opened(tmp_path / "test").labels.tolist() == [2]


def test_names_with_dots_inside_tars(tmp_path: Path) -> None:
    members = {f"IMG.{i:04d}.jpg": png() for i in range(20)}
    assert len(opened(write_tar(tmp_path / "a.tar", members))) == 20
    members = {name: png() for name in ("v1.0_1.jpg", "v1.0_2.jpg", "22.05.png", "22.06.png")}
    assert len(opened(write_tar(tmp_path / "b.tar", members))) == 4
    members = {"v1.1.jpg": png(), "v1.1.cls": b"3", "v1.2.jpg": png(), "v1.2.cls": b"4"}
    assert opened(write_tar(tmp_path / "c.tar", members)).labels.tolist() == [3, 4]
    pairs = {f"{i}.{kind}.png": png() for i in range(3) for kind in ("input", "target")}
    source = opened(write_tar(tmp_path / "d.tar", pairs))
    assert len(source) == 3
    assert "several pictures" in source.findings.warnings[0]


def test_members_that_stand_apart_are_one_sample_and_told(tmp_path: Path) -> None:
    members = {"1.jpg": png(), "2.jpg": png(), "1.cls": b"dog", "2.cls": b"cat"}
    source = opened(write_tar(tmp_path / "a.tar", members))
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert source.findings.merged == 2


def test_labels_of_tars_by_name_and_by_folder(tmp_path: Path) -> None:
    members = {f"{i}.{kind}": data for i, word in enumerate("ba") for kind, data in
               (("jpg", png()), ("json", json.dumps({"class": word, "caption": f"a {word}"}).encode()))}  # fmt: skip
    source = opened(write_tar(tmp_path / "a.tar", members))
    assert (source.classes, source.labels.tolist()) == (("a", "b"), [1, 0])
    assert source.captions() == [["a b"], ["a a"]]
    source = opened(write_tar(tmp_path / "b.tar", {"s/cat/1.jpg": png(), "s/dog/2.jpg": png()}))
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1])


def test_the_range_of_deep_pictures_is_said_or_the_set_refused(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 64)[None].repeat(64, 0)
    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.fromarray((ramp * 4000).astype(np.uint16)).save(tmp_path / f"a/{i}.tif")
    source = opened(tmp_path / "a")
    assert "12-bit values 0 to 4095" in source.findings.values
    assert np.asarray(source.read(0)[0]).max() == round(4000 / 4095 * 255)
    Image.fromarray((ramp * 2000 - 1000).astype(np.int32)).save(tmp_path / "a/signed.tif")
    assert "--data.range" in refusal(tmp_path / "a")
    assert np.asarray(opened(tmp_path / "a", range=("0", "8000")).read(0)[0]).max() == round(4000 / 8000 * 255)


def test_what_was_understood_is_said_in_one_line_and_in_full(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "cat/2.png", "dog/3.png", "notes.txt")
    source = opened(tmp_path)
    line = source.summary(16)
    for words in ("image folder", "3 pictures", "2 classes (cat, dog; smallest dog: 1)", "folder names", "1 .txt",
                  "3 of 3 looked at are below 16 pixels: enlarged"):  # fmt: skip
        assert words in line
    said = json.loads(json.dumps(source.explain(16)))
    assert (said["form"], said["pictures"], said["classes"], said["sides"]) == (
        "image folder", 3, 2, {"looked_at": 3, "below": 3})  # fmt: skip


def test_absurd_ranges_are_refused_at_once() -> None:
    assert "1,000,000,000 files" in refusal(Path("x-{0..999999999}.tar"))
