"""Captioned pictures: parquet, and the annotation files of Flickr30k and COCO."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from captioned import write_captioned

from fqgan.base.errors import UserError
from fqgan.lab.understanding.captions import knows_splits, open_captions


@pytest.fixture
def annotated(pictures: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes an annotation file beside a folder `images` with the pictures 0.png to 7.png."""
    (tmp_path / "images").symlink_to(pictures)

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_parquet_gives_pictures_and_captions_in_its_order(tmp_path: Path) -> None:
    folder = write_captioned(tmp_path / "set", train=6, test=4)
    found = open_captions(str(folder))
    assert len(found) == len(found.source) == 6
    assert found.captions[1] == ("a green square on grey", "there is a green square")
    test = open_captions(str(folder), "test")
    assert len(test) == 4 and test.source.read(0)[0].size == (32, 32)
    assert knows_splits(str(folder)) and not knows_splits(str(folder / "train.parquet"))
    assert found.data_fingerprint() != test.data_fingerprint()


def test_parquet_may_hold_texts_or_sentences(tmp_path: Path) -> None:
    table = pq.read_table(write_captioned(tmp_path / "set", train=2, test=1) / "train.parquet")
    for name, values in (("text", ["a", "b"]), ("sentences", [[{"raw": "a", "id": 3}], [{"raw": "b", "id": 4}]])):
        other = table.drop_columns(["caption"]).append_column(name, pa.array(values))
        pq.write_table(other, tmp_path / "other.parquet")
        assert open_captions(str(tmp_path / "other.parquet")).captions == (("a",), ("b",))


FLICKR = [("0.png", "A dog , running ."), ("0.png", "It runs ."), ("3.png", 'A "cat"')]
KARPATHY = {
    "images": [
        {"filename": "0.png", "split": "restval", "sentences": [{"raw": "A dog , running ."}, {"raw": "It runs ."}]},
        {"filename": "3.png", "filepath": "images", "split": "train", "sentences": [{"raw": 'A "cat"'}]},
        {"filename": "5.png", "split": "test", "sentences": [{"raw": "other"}]},
    ]
}
COCO = {
    "images": [{"id": 9, "file_name": "0.png"}, {"id": 7, "file_name": "3.png"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": FLICKR[0][1]},
        {"id": 2, "image_id": 7, "caption": FLICKR[2][1]},
        {"id": 3, "image_id": 9, "caption": FLICKR[1][1]},
    ],
}
HUB = (
    "raw,sentids,split,filename,img_id\n"
    '"[""A dog , running ."", ""It runs .""]","[0, 1]",train,0.png,0\n'
    '"[""A \\""cat\\""""]",[2],train,3.png,1\n'
    '"[""other""]",[3],test,5.png,2\n'
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("flickr30k.token", "".join(f"{name}#{i}\t{text}\n" for i, (name, text) in enumerate(FLICKR))),
        ("results.csv", "image_name| comment_number| comment\n" + "".join(f"{n}| 0| {t}\n" for n, t in FLICKR)),
        # a bar is missing, as in one line of the usual file
        ("broken.csv", "image_name| comment_number| comment\n0.png| 0| A dog , running .\n0.png| 4   It runs .\n"),
        ("captions.txt", 'image,caption\n0.png,"A dog , running ."\n0.png,It runs .\n3.png,"A ""cat"""\n'),
        ("flickr_annotations_30k.csv", HUB),
        ("captions_val.json", json.dumps(COCO)),
        ("dataset_flickr30k.json", json.dumps(KARPATHY)),
    ],
)
def test_annotation_files_in_the_usual_forms(annotated: Callable[[str, str], Path], name: str, text: str) -> None:
    path = annotated(name, text)
    found = open_captions(str(path), "train", str(path.parent / "images"))
    assert found.captions[0] == ("A dog , running .", "It runs .")
    assert [Path(found.source.describe(i)).name for i in range(len(found))] == ["0.png", "3.png"][: len(found)]
    assert name.startswith("broken") or found.captions[1] == ('A "cat"',)
    assert knows_splits(str(path)) == ("annotations" in name or name.startswith("dataset"))
    if knows_splits(str(path)):
        assert open_captions(str(path), "test").captions == (("other",),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.token",
            "0.png#0\tA dog\n99.png#0\tA cat\n",
            "of pictures that are not below .*, such as 99.png: name their folder",
        ),
        ("a.token", "0.png#0\tA dog\n3.png#0\t \n", r"3.png has no caption: leave it out"),
        ("a.token", "0.png#0\tA dog\nno\n", "line 2 of .*a.token is not a picture's name"),
        ("a.csv", "x,y\n1,2\n", "its heading should name image and caption"),
        ("a.csv", "raw,filename\nno,0.png\n", "the captions of 0.png are no JSON list"),
        ("a.json", '{"images": [{"id": 1, "file_name": "0.png"}], "annotations": []}', "0.png has no caption"),
        ("a.json", '{"images": [{"id": 1}], "annotations": []}', "a.json: image 0: file_name is missing"),
        ("a.json", '{"annotations": []}', "no captions in COCO's form"),
        ("a.json", json.dumps({"images": KARPATHY["images"][2:]}), "no captions of the split train; its splits: test"),
        ("a.txt", "", "its heading should name"),
    ],
)
def test_bad_annotations_are_refused(annotated: Callable[[str, str], Path], name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_captions(str(annotated(name, text)))


def test_pictures_without_captions_are_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no captions: name parquet files"):
        open_captions(str(pictures))
    folder = write_captioned(tmp_path / "set", train=3, test=1)
    table = pq.read_table(folder / "train.parquet")
    bare = table.drop_columns(["caption"])
    pq.write_table(bare, folder / "train.parquet")
    with pytest.raises(UserError, match="has no captions: name parquet files"):
        open_captions(str(folder))
    for empty in ([], None, [" "], ["."]):
        pq.write_table(bare.append_column("caption", pa.array([["a"], empty, empty])), folder / "train.parquet")
        with pytest.raises(UserError, match=r"row 1 of .*train.parquet has no caption \(2 such pictures\)"):
            open_captions(str(folder))
    pq.write_table(table.drop_columns(["image"]), folder / "train.parquet")
    with pytest.raises(UserError, match="no image column"):
        open_captions(str(folder))
    with pytest.raises(UserError, match="does not exist"):
        open_captions(str(tmp_path / "nothing.json"))
