"""CIFAR by name, from a made-up copy in torchvision's layout."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.data.sources import default_validation, open_source
from fqgan.engine.run import read_stats


def batch(seed: int, count: int, key: str) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).tolist()
    return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), key: labels}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$FQGAN_DATA with 2 x 6 training pictures and 4 test pictures of each set, and torchvision told of their sums."""

    def write(folder: Path, name: str, content: Any) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for kind, key, names in (
        (datasets.CIFAR10, "labels", "label_names"),
        (datasets.CIFAR100, "fine_labels", "fine_label_names"),
    ):
        folder = tmp_path / "data" / kind.base_folder
        train = [write(folder, f"data_batch_{i}", batch(i, 6, key)) for i in range(2)]
        meta = write(folder, kind.meta["filename"], {names: ["cat", "dog", "emu"]})
        monkeypatch.setattr(kind, "train_list", train)
        monkeypatch.setattr(kind, "test_list", [write(folder, "test_batch", batch(9, 4, key))])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": meta[1]})
    monkeypatch.setenv("FQGAN_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.mark.parametrize(("name", "key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_pictures_and_labels(root: Path, name: str, key: str) -> None:
    train, test = open_source(name), open_source(name, "validation")
    assert (len(train), len(test), train.blocks) == (12, 4, [12])
    assert train.classes == ("cat", "dog", "emu")
    second = batch(1, 6, key)
    image, label = train.read(8)
    np.testing.assert_array_equal(np.array(image), second["data"][2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert label == second[key][2] == train.labels[8]
    assert train.describe(8) == f"picture 8 of {name} (train)"
    assert test.labels.tolist() == batch(9, 4, key)[key]


def test_missing_files_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FQGAN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        open_source("cifar10")
    root = tmp_path / ".cache/fqgan/datasets"
    assert str(caught.value) == (
        f"cifar10: {root}/cifar-10-batches-py does not exist: set FQGAN_DATA to the folder that holds "
        "cifar-10-batches-py, or get it with "
        f"python -c \"from torchvision.datasets import CIFAR10 as D; D('{root}', download=True)\""
    )
    assert not root.exists()
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(UserError, match=r"; for the folder beside you say \./cifar10$"):
        open_source("cifar10")


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_changed_files_are_never_unpickled(root: Path, file: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    (root / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Trap()))
    for split in ("train", "validation"):
        with pytest.raises(UserError, match=r"^cifar10: .*cifar-10-batches-py is not whole: .*download=True"):
            open_source("cifar10", split)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert (tmp_path / "sprung").exists(), "the trap works"


def test_its_test_split_validates() -> None:
    assert [default_validation(spec) for spec in ("photos", "cifar10", "cifar100", "./cifar10", "")] == [
        *("photos", "cifar10", "cifar100", "", "")
    ]


def test_a_run_on_it(root: Path, tiny: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    from fqgan.base import schema

    schema.save(tiny, tmp_path / "tiny.json")
    train = ("train-tokenizer", "dual-ds16", "--config", str(tmp_path / "tiny.json"), "--run", str(tmp_path / "run"))
    assert main([*train, "--data.source", "cifar10"]) == 0
    assert "val_psnr" in read_stats(tmp_path / "run")[-1]
    assert "the training data of" in refused(*train, "--data.source", "cifar100")
