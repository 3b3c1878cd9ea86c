"""`fqgan evaluate generator`: pictures, numbers and protocol of an untrained generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import generators
import numpy as np
import pytest
from sets import FAST, evaluated, samples, write_pictures

import fqgan
from fqgan.evaluation.sets import open_set
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]


@pytest.fixture
def generator(here: Path, tokenizer: FactorizedTokenizer) -> Path:
    model = generators.tiny(codebook_sizes=(32, 16), grid=(8, 8), num_classes=3)
    model.carry(tokenizer)
    return fqgan.save_generator(model, here / "generator")


def test_a_generator_is_measured_end_to_end(generator: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(here / "wide", 14, 0, size=32)
    argv = ("generator", generator, "--data", "wide", "--num", 9, "--seed", 5, "--npz", *FAST)
    result = evaluated(*argv)
    side = result["protocol"]["samples"]
    assert side["labels"] == {"classes": 3, "fewest": 3, "most": 3, "unlabelled": 0} and side["draw"] == "balanced"
    assert side["seed"] == 5 and side["sampling"]["cfg_scale"] == [2.0] and side["precision"] == "float32"
    assert (side["count"], result["protocol"]["size"]) == (9, 32)
    folder = generator / "evaluation"
    with np.load(folder / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (9, 32, 32, 3)
    (folder / "000004.png").unlink()
    capsys.readouterr()
    assert evaluated(*argv)["metrics"] == pytest.approx(result["metrics"])
    assert "9 pictures of 3 classes" in capsys.readouterr().out
    # the same pictures, as a folder: the grid beside them is no sample
    assert len(open_set(str(folder)).source or ()) == 9
    assert samples("wide", folder)["metrics"] == pytest.approx(result["metrics"])


def test_uniform_labels_are_drawn_by_the_seed(generator: Path, here: Path) -> None:
    write_pictures(here / "wide", 8, 0, size=32)
    argv = ("generator", generator, "--data", "wide", "--num", 12, "--labels", "uniform", *FAST)
    result = evaluated(*argv, "--samples", "first")
    rows = json.loads(Path("first/samples.json").read_text())["pictures"]
    assert [row["label"] for row in rows] == np.random.default_rng(0).choice(3, 12).tolist()
    assert result["protocol"]["samples"]["draw"] == "uniform"


def test_an_unfinished_folder_of_samples_is_refused(generator: Path, here: Path, refused: Refused) -> None:
    evaluated("generator", generator, "--data", "real", "--num", 6, "--size", 24, *FAST, "--samples", "made")
    manifest = json.loads(Path("made/samples.json").read_text())
    Path("made/samples.json").write_text(json.dumps({**manifest, "complete": False}))
    assert "made is not finished" in refused("evaluate", "samples", "real", "made", *FAST)
