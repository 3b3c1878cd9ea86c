"""Folders, parquet files and `load_images`, from files written here."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fqgan.base.errors import UserError
from fqgan.data.loader import evaluation_batches, load_images
from fqgan.data.order import epoch_order
from fqgan.data.sources import Request, open_source
from fqgan.data.sources.parquet import ParquetSource


def save(path: Path, colour: Any = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(path: Path, values: list[int], group: int = 4, names: tuple[str, ...] = ()) -> Path:
    """Pictures of the grey `values`, which are the labels too, in the Hugging Face layout."""
    label = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    features = {"image": {"_type": "Image"}, "label": label}
    table = pa.table(
        {"image": [{"bytes": png(value), "path": f"{value}.png"} for value in values], "label": values}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def error(spec: Path | str, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(spec), split)
    return str(caught.value)


def test_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "dog/b.png", 3)
    save(tmp_path / "cat/deep/er/c.JPG", 2)
    save(tmp_path / "cat/a.png", 1)
    save(tmp_path / "cat/.hidden.png")
    save(tmp_path / ".cache/x.png")
    (tmp_path / "cat/notes.txt").write_text("no picture")
    (tmp_path / "emu").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog", "emu")
    assert source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == np.int64
    assert source.blocks == [3]
    assert [Path(source.describe(i)).name for i in range(len(source))] == ["a.png", "c.JPG", "b.png"]
    image, label = source.read(2)
    assert (image.mode, image.getpixel((0, 0)), label) == ("RGB", (3, 0, 0), 1)


def test_flat_folder_has_no_classes(tmp_path: Path) -> None:
    save(tmp_path / "b.png")
    save(tmp_path / "a.webp")
    save(tmp_path / "more/c.bmp")
    source = open_source(str(tmp_path))
    assert source.classes == ()
    assert source.labels.tolist() == [-1, -1, -1]
    assert [Path(source.describe(i)).name for i in range(3)] == ["a.webp", "b.png", "c.bmp"]


def test_split_folders_are_not_taken_for_classes(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png"):
        save(tmp_path / name)
    train, validation = open_source(str(tmp_path)), open_source(str(tmp_path), "validation")
    assert train.classes == validation.classes == ("cat", "dog")
    assert [Path(s.describe(0)).name for s in (train, validation)] == ["1.png", "3.png"]


def test_parquet_file(tmp_path: Path) -> None:
    source = open_source(str(write_parquet(tmp_path / "a.parquet", list(range(10)), names=tuple("abcdefghij"))))
    assert (len(source), source.blocks, source.classes) == (10, [4, 4, 2], tuple("abcdefghij"))
    for index in (9, 0, 5, 4):
        image, label = source.read(index)
        assert (image.getpixel((3, 3)), label) == ((index,) * 3, index)
    assert source.describe(5) == f"row 5 of {tmp_path / 'a.parquet'}"


def test_parquet_folder_and_glob(tmp_path: Path) -> None:
    for i in range(3):
        write_parquet(tmp_path / f"part-{i}.parquet", list(range(3 * i, 3 * i + 3)), group=2)
    folder, some = open_source(str(tmp_path)), open_source(f"{tmp_path}/part-[12].parquet")
    assert folder.labels.tolist() == list(range(9))
    assert folder.blocks == [2, 1] * 3
    assert some.labels.tolist() == list(range(3, 9))
    assert folder.read(7)[0].getpixel((0, 0)) == (7, 7, 7)
    assert folder.describe(8) == f"row 2 of {tmp_path / 'part-2.parquet'}"


def test_parquet_splits_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    """Training on a folder with train.parquet and test.parquet must not train on the test images."""
    write_parquet(tmp_path / "train-0.parquet", [1])
    write_parquet(tmp_path / "test-0.parquet", [2])
    assert open_source(str(tmp_path)).labels.tolist() == [1]
    assert open_source(str(tmp_path), "validation").labels.tolist() == [2]
    write_parquet(tmp_path / "validation-0.parquet", [3])
    assert open_source(str(tmp_path), "validation").labels.tolist() == [3]
    (tmp_path / "train-0.parquet").unlink()
    assert "but no train split" in error(tmp_path)


def test_parquet_variants(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "jpg": pa.array([png(7)], pa.large_binary())}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert (source.labels.tolist(), source.classes) == ([-1], ())
    assert source.read(0)[0].getpixel((0, 0)) == (7, 7, 7)
    columns = {"image": [png(1), None, b"text"], "label": pa.array([4, None, 5], pa.int32())}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    source = open_source(str(tmp_path / "b.parquet"))
    assert source.labels.tolist() == [4, -1, 5]
    with pytest.raises(UserError, match=r"^row 1 of .*b\.parquet holds no picture bytes$"):
        source.read(1)
    with pytest.raises(UserError, match=r"^row 2 of .*b\.parquet is no picture in a format that Pillow reads$"):
        source.read(2)


def counted_row_groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read from now on, in a list that grows."""
    reads: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counting(self: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        reads.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    return reads


def test_shuffled_reading_opens_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(write_parquet(tmp_path / "a.parquet", list(range(40)))))
    reads = counted_row_groups(monkeypatch)
    source.reserve(3)
    for index in epoch_order(source.blocks, seed=0, epoch=0, window=3):
        assert source.read(int(index))[1] == index
    assert sorted(reads) == list(range(10))


def test_sources_survive_pickling(tmp_path: Path) -> None:
    save(tmp_path / "folder/a.png", 9)
    parquet = open_source(str(write_parquet(tmp_path / "a.parquet", list(range(20)))))
    empty = len(pickle.dumps(parquet))
    for source in (parquet, open_source(str(tmp_path / "folder")), open_source("photos")):
        image, label = source.read(0)
        copied, copied_label = pickle.loads(pickle.dumps(source)).read(0)
        assert (image.tobytes(), label) == (copied.tobytes(), copied_label)
    assert len(pickle.dumps(parquet)) == empty


def test_parquet_in_workers(tmp_path: Path) -> None:
    source = open_source(str(write_parquet(tmp_path / "a.parquet", list(range(40)))))
    source.read(7)  # the main process has read before its workers start
    for images, labels, indices in evaluation_batches(source, size=8, batch=6, workers=2):
        assert (images == labels[:, None, None, None]).all()
        assert torch.equal(labels, indices)


def test_errors_of_paths(tmp_path: Path) -> None:
    (tmp_path / "imagenette").mkdir()
    assert error(tmp_path / "imagenete") == f"{tmp_path}/imagenete does not exist; did you mean 'imagenette'?"
    assert error("fotos").startswith("fotos does not exist; did you mean 'photos'?")
    assert error(tmp_path / "nowhere/a.parquet") == f"{tmp_path}/nowhere/a.parquet does not exist"
    assert error("") == "no image source is set: name photos, cifar10, an image folder, parquet files or tars"
    assert error(tmp_path / "imagenette").startswith(f"{tmp_path}/imagenette holds no picture (.jpg ")
    picture = save(tmp_path / "a.png")
    assert len(open_source(str(picture))) == 1
    (tmp_path / "a.doc").touch()
    assert error(tmp_path / "a.doc").startswith(f"{tmp_path}/a.doc is neither a folder nor a .parquet or .tar file")
    assert error("photos", "test").startswith("the packaged photographs have the splits train and validation")


def test_errors_of_parquet_files(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole.parquet", [1, 2]).read_bytes()
    for name, data in (("cut", whole[:-20]), ("text", b"text " * 10), ("empty", b"")):
        (tmp_path / f"{name}.parquet").write_bytes(data)
        message = error(tmp_path / f"{name}.parquet")
        assert message.startswith(
            f"{tmp_path}/{name}.parquet cannot be read as parquet (cut short, or another format?)"
        )
        assert "\n" not in message
    pq.write_table(pa.table({"id": [1], "label": [2]}), tmp_path / "columns.parquet")
    assert error(tmp_path / "columns.parquet").endswith("; its columns: id, label")
    pq.write_table(pa.table({"image": [png(1)], "label": [1.5]}), tmp_path / "parts.parquet")
    assert "holds 1.5: a whole number or a name is needed" in error(tmp_path / "parts.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "rows.parquet")
    assert error(tmp_path / "rows.parquet").endswith("holds no picture: its parquet files have no rows")


def test_labels_must_be_classes(tmp_path: Path) -> None:
    """Such a label would end a training on a GPU in a failed assertion of some kernel, hours later."""
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 2, 1, 3], names=("x", "y"))
    assert error(path) == f"row 2 of {path} has the label 2: the 2 classes are 0 to 1, and -1 stands for none"
    pq.write_table(pa.table({"image": [png(1)] * 3, "label": [7, -1, -2]}), path)
    assert error(path) == f"row 2 of {path} has the label -2: -1 stands for none"
    pq.write_table(pa.table({"image": [png(1)] * 3, "label": [7, -1, None]}), path)
    assert open_source(str(path)).labels.tolist() == [7, -1, -1]


def test_data_damaged_after_opening_is_a_user_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [1, 2])
    source = ParquetSource([path], Request("a"))
    path.unlink()
    with pytest.raises(UserError, match=r"a\.parquet does not exist"):
        source.read(0)
    picture = save(tmp_path / "pictures/a.png", size=(400, 400))
    folder = open_source(str(picture.parent))
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match=r"pictures/a\.png cannot be read as a picture: [^\n]+$"):
        folder.read(0)


def test_load_images(tmp_path: Path) -> None:
    white, black = save(tmp_path / "white.png", "white", (40, 30)), save(tmp_path / "black.png", "black", (16, 16))
    images = load_images([white, str(black)], size=16)
    assert (images.shape, images.dtype) == ((2, 3, 16, 16), torch.float32)
    assert images[0].unique().tolist() == [1]
    assert images[1].unique().tolist() == [-1]
    assert torch.equal(load_images(str(black), size=16), images[1:])


def test_load_images_errors(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", size=(40, 30))
    assert load_images([path]).shape == (1, 3, 256, 256)
    with pytest.raises(UserError, match=r"a\.png is 40x30 pixels, below the image size 256: "):
        load_images([path], small="refuse")
    with pytest.raises(UserError, match=r"b\.png does not exist$"):
        load_images(tmp_path / "b.png")
    with pytest.raises(UserError, match="the list of paths is empty"):
        load_images([])
