"""A run notices when its data have changed: every kind of source, every kind of change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_data_images import write_parquet
from test_data_tar import samples, write_tar

from fqgan.base import schema
from fqgan.base.schema import changes
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.data.fingerprint import data_fingerprint
from fqgan.data.sources import open_source


def of(path: Path | str) -> dict[str, Any]:
    return data_fingerprint(open_source(str(path)))


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """Two classes of four pictures."""
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for j in range(4):
            shutil.copy(pictures / f"{4 * i + j}.png", tmp_path / "data" / name)
    return tmp_path / "data"


def test_the_same_data_elsewhere_are_the_same(folder: Path, tmp_path: Path) -> None:
    before = of(folder)
    assert json.loads(json.dumps(before)) == before
    shutil.move(folder, tmp_path / "moved")
    assert changes(before, of(tmp_path / "moved")) == ""
    (tmp_path / "moved/cat/1.png").write_bytes(b"repaired")
    assert changes(before, of(tmp_path / "moved")) == ""
    assert changes({}, before) == "", "a checkpoint of the first version"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "cat/1.png").unlink(), "images: 8 -> 7"),
        (lambda data: (data / "emu").mkdir(), "classes: 2 -> 3"),
        (lambda data: (data / "cat").rename(data / "ape"), "other class names, other names"),
        (lambda data: (data / "cat/1.png").rename(data / "cat/9.png"), "other names"),
        (lambda data: (data / "cat/3.png").rename(data / "dog/3.png"), "other labels, other names"),
    ],
)
def test_changes_of_a_folder(folder: Path, change: Callable[[Path], Any], message: str) -> None:
    before = of(folder)
    change(folder)
    assert changes(before, of(folder)) == message


def test_changes_of_parquet_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(range(8)), group=4)
    before = of(path)
    assert changes(before, of(write_parquet(path, list(range(8)), group=2))) == "blocks: 2 -> 4"
    assert changes(before, of(write_parquet(path, list(range(8)), group=6))) == "other block lengths"
    assert changes(before, of(write_parquet(path, [*range(7), 9], group=4))) == "other labels"
    assert changes(before, of(write_parquet(tmp_path / "b.parquet", list(range(8)), group=4))) == "other names"


def test_changes_of_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write_tar(tmp_path / "a.tar", samples(range(8)))
    before = of(path)
    assert changes(before, of(write_tar(path, samples(range(7))))) == "images: 8 -> 7"
    renamed = {f"x{name}": data for name, data in samples(range(8)).items()}
    assert changes(before, of(write_tar(path, renamed))) == "other names"


def test_the_photographs() -> None:
    train, again, validation = of("photos"), of("photos"), data_fingerprint(open_source("photos", "validation"))
    assert changes(train, again) == ""
    assert "images: " in changes(train, validation)


def test_a_resumed_run_refuses_other_data(
    tiny: TokenizerRunConfig,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.chdir(tmp_path)
    schema.save(child(tiny, data={"source": "data"}), tmp_path / "tiny.json")
    train = ("train-tokenizer", "dual-ds16", "--config", "tiny.json", "--run", "run")
    assert main([*train, "--train.steps", "1"]) == 0
    taken = (folder / "dog/6.png").read_bytes()
    (folder / "dog/6.png").unlink()
    line = refused(*train)
    assert "the training data of run changed since its last checkpoint (images: 8 -> 7)" in line
    assert "restore the data, or use a new --run; --init run with a new --run starts from these weights" in line
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000001"]
    (folder / "dog/6.png").write_bytes(taken)
    assert main([*train]) == 0

    # checkpoints of the first version hold no fingerprint
    state = tmp_path / "run/checkpoints/step-00000002/state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "data"}))
    assert main([*train, "--train.steps", "3"]) == 0
