"""What is read back from files of any content: each reader takes it as it is meant, or refuses it in one line."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from fqgan.base import schema
from fqgan.base.errors import UnreadableError, UserError
from fqgan.data.cache import Cache
from fqgan.data.decode import decode_image
from fqgan.data.fingerprint import data_fingerprint
from fqgan.data.packer import Packer
from fqgan.data.shards import PackOptions
from fqgan.data.sources import open_source
from fqgan.evaluation.collect import FeatureSet
from fqgan.evaluation.protocol import read_result
from fqgan.evaluation.sets import open_set
from fqgan.evaluation.statistics import cached, load_statistics, save_statistics
from fqgan.lab.understanding.captions import open_captions
from fqgan.metrics.frechet import Gaussian

DEEP = "[" * 60 + "]" * 60


def picture(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def line(call: Callable[[], Any]) -> str:
    """What is said where something is refused."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def write_tar(path: Path, members: dict[str, bytes], pax: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), pax or {}
            archive.addfile(info, io.BytesIO(content))
    return path


def refused(path: Path) -> str:
    return line(lambda: open_source(str(path)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("size", [2**80, 2**60, 2**20, -1, -1024, -(2**40)])
def test_a_tar_header_of_an_absurd_size_is_refused(tmp_path: Path, size: int) -> None:
    """-1024 led back to the same header, without end."""
    data = bytearray(write_tar(tmp_path / "a.tar", {"a.png": picture(), "b.png": picture(1)}).read_bytes())
    data[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 256)
    (tmp_path / "a.tar").write_bytes(data)
    assert f"{tmp_path}/a.tar cannot be read as a tar" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "pax", [{"size": "9" * 20}, {"size": "-5"}, {"size": "9" * 5000}, {"GNU.sparse.size": "x"}, {"path": "x" * 5000}]
)
def test_a_pax_header_of_absurd_values_is_refused(tmp_path: Path, pax: dict[str, str]) -> None:
    assert "cannot be read as a tar" in refused(write_tar(tmp_path / "a.tar", {"a.png": picture()}, pax))


@pytest.mark.parametrize(
    ("member", "content", "told"),
    [
        ("cls", b"9" * 5000, "label of a.png must be a number from 0 on or a name"),
        ("cls", b"-7", "label of a.png must be a number"),
        ("json", DEEP.encode(), "a.json is no readable JSON file: nested more than 50 deep"),
        ("json", b"[" * 10**5, "a.json is no readable JSON file"),
        ("json", b'{"label": "\\ud800"}', "label of a.png must be a number"),
        ("json", b'{"label": 1e999}', "label of a.png must be a number"),
    ],
)
def test_a_tar_member_that_is_no_label_is_refused(tmp_path: Path, member: str, content: bytes, told: str) -> None:
    assert told in refused(write_tar(tmp_path / "a.tar", {"a.png": picture(), f"a.{member}": content}))


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {**arrays, "offsets": arrays["offsets"] + 10**9},
        lambda arrays: {**arrays, "offsets": arrays["offsets"] * 0 + 512},
        lambda arrays: {**arrays, "offsets": arrays["offsets"] + 1},
        lambda arrays: {**arrays, "offsets": -arrays["offsets"]},
        lambda arrays: {**arrays, "sizes": arrays["sizes"].astype(float)},
        lambda arrays: {**arrays, "sizes": np.full(2, 2**62)},
        lambda arrays: {**arrays, "labels": arrays["labels"] - 5},
        lambda arrays: {**arrays, "names": arrays["names"][:1]},
        lambda arrays: {**arrays, "names": arrays["names"].astype(object)},
        lambda arrays: {**arrays, "findings": np.array(b"[]")},
        lambda arrays: {**arrays, "findings": np.array(b'{"ignored": 5}')},
        lambda arrays: {name: array for name, array in arrays.items() if name != "words"},
    ],
)
def test_an_odd_index_of_a_tar_is_made_anew(tmp_path: Path, home: Path, change: Any) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(), "a.cls": b"1", "b.png": picture(1), "b.cls": b"0"})
    wanted = data_fingerprint(open_source(str(path)))
    (cache,) = home.rglob("*.npz")
    with np.load(cache) as arrays:
        odd = change(dict(arrays))
    np.savez(cache, **odd)
    assert data_fingerprint(open_source(str(path))) == wanted
    cache.unlink()
    os.mkfifo(cache)
    assert data_fingerprint(open_source(str(path))) == wanted


def write_parquet(path: Path, names: Any = None, **columns: Any) -> Path:
    images = [{"bytes": picture(i), "path": f"{i}.png"} for i in range(2)]
    table = pa.table({"image": images, "label": [0, 1], **columns})
    metadata = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(metadata)}), path)
    return path


def test_class_names_of_any_characters(tmp_path: Path) -> None:
    """The fingerprint failed on half a character."""
    source = open_source(str(write_parquet(tmp_path / "a.parquet", ["\ud800", "b\0\n"])))
    assert source.classes == ("\ud800", "b\0\n") and len(data_fingerprint(source)["class names"]) == 64
    assert "the class names of label hold [1], which is no name" in refused(
        write_parquet(tmp_path / "b.parquet", [[1]])
    )


def test_texts_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.array(["aa", "bb"]).buffers()[1], pa.py_buffer(b"\xff\xfe" * 2))
    path = write_parquet(tmp_path / "a.parquet", None, label=broken, caption=broken)
    assert "the labels of" in refused(path)
    path = write_parquet(tmp_path / "a.parquet", None, caption=broken)
    assert "cannot be read as captions" in line(open_source(str(path)).captions)


def test_a_range_of_thousands_of_digits() -> None:
    assert "names more than 1,000,000 files" in line(lambda: open_source("x-{1.." + "9" * 5000 + "}.tar"))
    assert "is no name of a file" in line(lambda: open_source("~\0/x"))
    assert "does not exist" in line(lambda: open_source("9" * 300 + "/x"))


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["<f2", ">f4", ">f8", "<i8", "g"])
def test_mu_and_sigma_of_any_width_and_order(tmp_path: Path, kind: str) -> None:
    """Those of big-endian numbers, and of long doubles, ended in a traceback."""
    sigma = np.asfortranarray(np.diag([1, 2, 3]).astype(kind))
    found = open_set(str(write_npz(tmp_path / "a.npz", mu=np.arange(3).astype(kind), sigma=sigma))).statistics
    assert found is not None and found.pooled.mean.tolist() == [0, 1, 2]
    assert found.pooled.covariance.dtype == torch.float64 and found.pooled.covariance.diagonal().tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("mu", "sigma", "told"),
    [
        (np.zeros(2, complex), np.eye(2), "mu must hold real numbers, not complex128"),
        (np.zeros(2), np.eye(2).astype(str), "sigma must hold real numbers, not <U32"),
        (np.zeros(2, object), np.eye(2), "mu cannot be read as an array"),
        (np.zeros(()), np.eye(2), "must be (d,) and (d, d), got () and (2, 2)"),
        (np.zeros(2), np.full((2, 2), np.nan), "must be finite"),
        (np.zeros(2), np.array([[1, 0.5], [0.2, 1]]), "not symmetric"),
        (np.zeros(2), np.array([[1, 2.0], [2, 1]]), "not positive semi-definite"),
        (np.zeros(2), -np.eye(2), "not positive semi-definite"),
    ],
)
def test_what_is_no_gaussian_is_refused(tmp_path: Path, mu: Any, sigma: Any, told: str) -> None:
    path = write_npz(tmp_path / "a.npz", mu=mu, sigma=sigma)
    text = line(lambda: open_set(str(path)))
    assert text.startswith(f"{path}: ") and told in text


def test_covariances_that_are_only_rounded_are_taken(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 60))  # not of full rank: rounding makes eigenvalues negative
    sigma = np.cov(rows, rowvar=False).astype(np.float32)
    sigma[0, 1] *= 1 + 1e-6
    assert np.linalg.eigvalsh(sigma).min() < 0
    assert open_set(str(write_npz(tmp_path / "a.npz", mu=np.zeros(60), sigma=sigma))).statistics
    assert open_set(str(write_npz(tmp_path / "b.npz", mu=np.zeros(60), sigma=np.zeros((60, 60))))).statistics


def test_a_header_that_promises_more_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", arr_0=np.zeros((1, 24, 24, 3), np.uint8))
    data = path.read_bytes()
    for shape in (b"(2**62,)", b"(99999999999999,)", b"(-1, 24, 24, 3,)"):
        path.write_bytes(data.replace(b"(1, 24, 24, 3), }", (shape + b", }").ljust(17)))
        assert "arr_0 cannot be read as an array" in line(lambda: open_set(str(path)))


def test_labels_of_an_npz_that_wrap_around_are_refused(tmp_path: Path) -> None:
    """2^64 - 1 became -1, which stands for no label."""
    pixels = np.zeros((2, 24, 24, 3), np.uint8)
    path = write_npz(tmp_path / "a.npz", arr_0=pixels, arr_1=np.full(2, 2**64 - 1, np.uint64))
    assert "has the label 18446744073709551615" in line(lambda: open_set(str(path)))
    source = open_set(str(write_npz(tmp_path / "b.npz", arr_0=pixels, arr_1=np.arange(2).astype(">u2")))).source
    assert source is not None and source.labels.tolist() == [0, 1]


def save(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    pooled, half = (Gaussian(torch.zeros(3).double(), torch.eye(3).double(), count) for count in (9, 4))
    features = FeatureSet(pooled, half=half, features=torch.zeros(5, 3))
    save_statistics(features, {"size": 24, "set": {"count": 9, "content": "a"}}, path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["fqgan"]), tensors


@pytest.mark.parametrize(
    ("content", "tensors", "told"),
    [
        ({"format_version": 2}, {}, "of another version"),
        ({"counts": []}, {}, "counts must be dict"),
        ({"counts": {"pooled": -1}}, {}, "counts must be dict of pooled, spatial and half"),
        ({"counts": {"pooled": 9, "spatial": 9}}, {}, "spatial.mean is missing"),
        ({"protocol": {"size": "big"}}, {}, "size must be int of pixels, got big"),
        ({"protocol": {"set": 5}}, {}, "set must be dict, got 5"),
        ({"score": {"score": "high"}}, {}, "score must be float, got high"),
        ({"protocol": {"deep": json.loads(DEEP)}}, {}, "nested more than 50 deep"),
        ({}, {"pooled.mean": torch.zeros(3, dtype=torch.int64)}, "pooled.mean holds no real numbers"),
        ({}, {"pooled.covariance": torch.zeros(3, 4)}, "must be (d,) and (d, d)"),
        ({}, {"half.covariance": -torch.eye(3)}, "half are no mean and covariance"),
        ({}, {"features": torch.zeros(5, 4)}, "features must be (n, 3) and finite, got (5, 4)"),
    ],
)
def test_odd_statistics_are_refused_and_measured_anew(
    tmp_path: Path, content: dict[str, Any], tensors: dict[str, torch.Tensor], told: str
) -> None:
    path = tmp_path / "a.safetensors"
    known, own = save(path)
    made = {"size": 24}
    assert cached(path, made, {"content": "a"}, 3, "cpu") is not None
    assert cached(path, {"size": 25}, {"content": "a"}, 3, "cpu") is None
    assert cached(path, made, {"content": "b"}, 3, "cpu") is None and cached(path, made, {}, 4, "cpu") is None
    save_file({**own, **tensors}, path, {"fqgan": json.dumps({**known, **content})})
    assert told in line(lambda: load_statistics(path))
    assert cached(path, made, {"content": "a"}, 3, "cpu") is None


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.npz", "a.safetensors", "a.csv", "a.json", "a.tar", "a.parquet", "a.arrow", "a.zip"):
        os.mkfifo(tmp_path / name)
        for call in (open_set, open_source, open_captions):
            assert name in line(lambda call=call, name=name: call(str(tmp_path / name)))
        assert name in line(lambda name=name: read_result(tmp_path / name))
    cache = Cache(tmp_path / "cache", 1000)
    (tmp_path / "cache/k").mkdir(parents=True)
    os.mkfifo(tmp_path / "cache/k/0")
    assert cache.find("k/0", 0) is None


MANIFEST = {
    "complete": True,
    "settings": {"seed": 0, "precision": "float32", "sampling": {}},
    "pictures": [{"file": "0.png", "label": 0}],
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pictures": [{"file": "/etc/passwd", "label": 0}]}, "picture 0: file must be str with the name of a file"),
        ({"pictures": [{"file": "../0.png", "label": 0}]}, "picture 0: file must be str"),
        ({"pictures": [{"file": "..", "label": 0}]}, "picture 0: file must be str"),
        ({"pictures": [{"file": "a\0", "label": 0}]}, "picture 0: file must be str"),
        ({"pictures": [{"file": "\ud800", "label": 0}]}, "picture 0: file must be str"),
        ({"pictures": [{"file": "0.png", "label": "a"}]}, "picture 0: label must be int from 0 on, got a"),
        ({"pictures": [{"file": "0.png", "label": 2**70}]}, "picture 0: label must be int"),
        ({"pictures": [3]}, "picture 0 holds no JSON object"),
        ({"pictures": []}, "pictures must be list of one picture or more"),
        ({"pictures": 7}, "pictures must be list"),
        ({"complete": "yes"}, "complete must be bool"),
        ({"settings": {}}, "seed is missing"),
    ],
)
def test_an_odd_list_of_generated_pictures_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    (tmp_path / "0.png").write_bytes(picture())
    (tmp_path / "samples.json").write_text(json.dumps(MANIFEST))
    assert open_set(str(tmp_path)).size == 24
    (tmp_path / "samples.json").write_text(json.dumps({**MANIFEST, **change}))
    text = line(lambda: open_set(str(tmp_path)))
    assert told in text and "samples.json" in text


def test_the_size_of_a_set_is_that_of_its_first_readable_picture(tmp_path: Path) -> None:
    """One that came first in the order of names ended `evaluate statistics`."""
    (tmp_path / os.fsdecode(b"a\xff.png")).write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(picture())
    assert open_set(str(tmp_path)).size == 24
    (tmp_path / "b.png").write_bytes(b"neither")
    assert open_set(str(tmp_path)).size == 0


def test_damaged_pixels_of_a_png_are_noticed() -> None:
    """Pillow decodes them without a word."""
    data = bytearray(picture())
    assert decode_image(bytes(data), "a").size == (24, 24)
    data[60] ^= 1
    with pytest.raises(UnreadableError, match="a cannot be read as a picture: its pixels are damaged"):
        decode_image(bytes(data), "a")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"images": [{"id": [], "file_name": "0.png"}], "annotations": []}', "image 0: id must be object"),
        ('{"images": [{"id": 1, "file_name": 5}], "annotations": []}', "image 0: file_name must be str"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}', "annotation 0: image_id must be"),
        ('{"images": [{"filename": "0.png", "sentences": [{"raw": 5}]}]}', "image 0: sentences: raw must be str"),
        ('{"images": [{"filename": "0.png", "split": [], "sentences": []}]}', "image 0: split must be str"),
        ('{"images": [1]}', "image 0 holds no JSON object"),
    ],
)
def test_odd_captions_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert told in line(lambda: open_captions(str(tmp_path / "a.json")))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data": []}, "data must be dict"),
        ({"shards": [{"file": "../a.parquet", "start": 0, "stop": 2}]}, "shards hold"),
        ({"shards": [{"file": "a.parquet", "start": -1, "stop": 2}]}, "shards hold"),
        ({"shards": 5}, "key shards must be a list"),
        ({"samples": [1]}, "key samples.0 must be str"),
    ],
)
def test_an_odd_record_of_a_packed_set_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        (tmp_path / f"in/{i}.png").write_bytes(picture(i))
    source, options = open_source(str(tmp_path / "in")), PackOptions(size=16)
    Packer(source, tmp_path / "out", options, workers=0).run()
    record = tmp_path / "out/.train.pack.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    text = line(lambda: Packer(source, tmp_path / "out", options, workers=0))
    assert told in text and str(record) in text


def test_lists_of_pictures_with_names_that_no_system_takes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"file_name": "~\\u0000/a.png"}\n')
    assert "which is no name of a file" in refused(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text(f'{{"file_name": "a.png"}}\n{DEEP}\n')
    assert "a.jsonl: line 2 is no readable JSON file" in refused(tmp_path / "a.jsonl")


def test_json_that_is_nested_deeply_is_refused(tmp_path: Path) -> None:
    """Comparing two such results ended in a traceback."""
    (tmp_path / "eval.json").write_text(f'{{"metrics": {{"a": {DEEP}}}, "protocol": {{}}}}')
    assert "eval.json is no readable JSON file: nested more than 50 deep" in line(lambda: read_result(tmp_path))
    assert schema.parse_json("[" * 50 + "]" * 50, "a")
    assert [schema.is_number(value) for value in (1, 1.5, True, 10**400, "1")] == [True, True, False, False, False]
