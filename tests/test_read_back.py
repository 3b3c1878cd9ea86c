"""What is read back is checked: checkpoints, statistics, settings and pictures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from begun import run, train
from PIL import Image
from safetensors.torch import load_file, save_file
from test_bad_input import TRAIN, Refused, here, snapshot

from fqgan.base import schema
from fqgan.engine import checkpoint
from fqgan.engine.run import read_stats
from fqgan.models import pickles

__all__ = ["here", "run"]  # fixtures


def spoil_state(**changes: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, **changes}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (spoil_state(step="1"), "state.json: step must be int, got 1"),
        (spoil_state(step=-1), "state.json: step must be int, got -1"),
        (spoil_state(step=None), "state.json: step is missing"),
        (spoil_state(files=["a"]), "state.json: files must be dict of plain file names and their bytes"),
        (spoil_state(files={"../x": 1}), "state.json: files must be dict of plain file names and their bytes"),
        (spoil_state(files={"x": "1"}), "state.json: files must be dict of plain file names and their bytes"),
        (spoil_state(data=[1]), "state.json: data must be dict"),
        (spoil_state(data={"images": [8]}), "state.json: data must be dict"),
        (spoil_state(config=None), "state.json: config is missing"),
        (spoil_state(nonfinite_steps=[1]), "state.json: nonfinite_steps must be two counts"),
        (lambda folder: (folder / "state.json").write_text("[1]"), "state.json holds no JSON object"),
        (lambda folder: (folder / "state.json").write_text("[" * 99_999), "state.json is no readable JSON file"),
        (lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe"), "state.json is no text in UTF-8"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no readable JSON file"),
        (lambda folder: ((folder / "state.json").unlink(), os.mkfifo(folder / "state.json")), "state.json is no file"),
    ],
)
def test_a_state_of_another_form_names_file_and_entry(
    spoil: Callable[[Path], object], told: str, run: Path, refused: Refused
) -> None:
    spoil(run / "checkpoints/step-00000001")
    before = snapshot(run / "checkpoints") if not told.endswith("is no file") else {}
    assert told in refused(*TRAIN, "--train.steps", "2")
    assert not before or snapshot(run / "checkpoints") == before


def other_shape(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(3, dtype=tensor.dtype)


@pytest.mark.parametrize("file", ["tokenizer", "tokenizer-optimizer", "statistics"])
@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {name: other_shape(tensor) for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.bool() for name, tensor in tensors.items()},
        lambda tensors: {**tensors, "zz/extra": torch.zeros(2)},
        lambda tensors: dict(list(tensors.items())[1:]),
    ],
    ids=["shapes", "types", "one more", "one less"],
)
def test_tensors_of_something_else_are_refused(file: str, change: Any, run: Path, refused: Refused) -> None:
    path = run / f"checkpoints/step-00000001/{file}.safetensors"
    changed = change(load_file(path))
    save_file(changed, path)
    spoil_state(files={f.name: f.stat().st_size for f in path.parent.iterdir() if f.name != "state.json"})(path.parent)
    if file == "statistics" and ("zz/extra" in changed or "meter/unreadable" not in changed):
        assert train("--train.steps", "2") == 0, "what no meter asks for is nobody's loss"
    else:
        line = refused(*TRAIN, "--train.steps", "2")
        assert f"{file}.safetensors" in line


def test_weights_that_are_not_finite_take_no_checkpoints_place(tmp_path: Path, run: Path, refused: Refused) -> None:
    line = refused(*TRAIN, "--train.steps", "3", "--optimizer.lr", "1e38", "--train.checkpoint-every", "1")
    assert "not finite" in line
    assert checkpoint.problem_of(run / "checkpoints/step-00000001") == ""


def test_a_history_is_no_setting(run: Path, tiny: Any) -> None:
    file = run / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "history": [{"step": 1}]}))
    assert schema.load(type(tiny), file) == schema.load(type(tiny), run / "checkpoints/step-00000001/config.json")
    assert schema.history(file) == [{"step": 1}]


def test_numbers_of_numpy_and_paths_are_plain_data(tmp_path: Path) -> None:
    values = {"a": np.float64(3), "b": np.int64(4), "c": np.float32(2), "d": Path("x/y"), "e": np.bool_(True)}
    torch.save(values, tmp_path / "x.pt")
    assert pickles.load_pickle(tmp_path / "x.pt") == values


def test_a_picture_that_is_not_ours_is_made_anew(tmp_path: Path) -> None:
    from fqgan.config import SamplingConfig
    from fqgan.generator.samples import SampleFolder, SampleSettings

    settings = SampleSettings("g", "t", (0, 1), 10**9, 0, 2, "float32", "cpu", SamplingConfig())
    folder = SampleFolder(tmp_path / "s", settings, (8, 8), (), "made up")
    assert folder.begin() == 0
    for i in range(6):
        Image.new("RGB", (8, 8), (i, i, i)).save(folder.path(i))
    folder.path(1).write_bytes(folder.path(1).read_bytes()[:-5])
    Image.new("RGB", (9, 8)).save(folder.path(3))
    Image.new("L", (8, 8)).save(folder.path(5))
    shares = settings.share(0, 1)
    assert [folder.is_whole(next(shares)) for _ in range(3)] == [False, False, False]
    for i in (1, 3, 5):
        shutil.copy(folder.path(0), folder.path(i))
    assert all(folder.is_whole(range(i, i + 2)) for i in (0, 2, 4))
    folder.close()
    assert not (tmp_path / "s/.lock").exists()


def test_counts_of_version_0_1_are_taken(run: Path) -> None:
    file = run / "checkpoints/step-00000001/statistics.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "meter/unreadable": tensors["meter/unreadable"][:1].clone()}, file)
    spoil_state(files={f.name: f.stat().st_size for f in file.parent.iterdir() if f.name != "state.json"})(file.parent)
    assert train("--train.steps", "2") == 0


def test_odd_lines_of_statistics_cost_no_others(run: Path) -> None:
    file = run / "stats.jsonl"
    file.write_text('{"step": 0, "a": 1}\n\nnonsense\n[1]\n{"step": "x"}\n' + file.read_text() + '{"step": 1, "b')
    assert train("--train.steps", "2") == 0
    assert [line["step"] for line in read_stats(run)] == [0, 1, 2]
