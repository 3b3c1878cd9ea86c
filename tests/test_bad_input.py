"""Bad input through the real command line: one line that says what to do, exit status 2, nothing left behind."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from fqgan.base import schema
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig
from fqgan.engine import distributed
from fqgan.engine.run import RunFolder
from fqgan.tokenizer import task as training

Refused = Callable[..., str]


@pytest.fixture
def here(tmp_path: Path, tiny: TokenizerRunConfig, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: tiny.json and the exported tokenizer, and what else a test puts there."""
    monkeypatch.chdir(tmp_path)
    schema.save(tiny, tmp_path / "tiny.json")
    return tmp_path


TRAIN = ("train-tokenizer", "dual-ds16", "--config", "tiny.json", "--run", "run")


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    """Every file's content; folders are None."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def nothing_happens(here: Path, refused: Refused) -> Refused:
    """Like `refused`, and no file is created, changed or deleted."""

    def call(*argv: object) -> str:
        before = snapshot(here)
        line = refused(*argv)
        assert snapshot(here) == before
        return line

    return call


def write_picture(path: Path, size: tuple[int, int] = (40, 40)) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, "teal").save(path)
    return path


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ("--data.source nowhere", ["nowhere does not exist"]),
        ("--data.source photso", ["photso does not exist; did you mean 'photos'?"]),
        ("--data.source tiny.json", ["tiny.json is neither a folder nor a .parquet or .tar file"]),
        ("--data.source exported", ["exported holds no picture"]),
        ("--data.validation nowhere", ["nowhere does not exist"]),
        ("--model.image-size 30", ["model.image_size 30 is no multiple of the downsampling factor 4"]),
        ("--train.micro-batch 3", ["train.batch 4 is no multiple of train.micro_batch 3 times 1 rank"]),
        ("--model.factors.1.teacher resnet", ["unknown teacher 'resnet'", "efficientnet-lite0"]),
        (
            "--model.factors.1.teacher clip:openai/clip-vit-base-patch16",
            ["teacher 'clip:openai/clip-vit-base-patch16'", "--model.factors.1.teacher efficientnet-lite0"],
        ),
        (
            "--model.factors.0.teacher dinov2:nowhere/at/all",
            ["factor visual: teacher 'dinov2:nowhere/at/all'", "--model.factors.0.teacher dinov2:/path/to/folder"],
        ),
        (
            "--model.factors.1.teacher efficientnet-lite0@32 --model.factors.1.teacher-dim 7",
            ["factor semantic: teacher efficientnet-lite0@32 has 1280 dims, not 7"],
        ),
        ("--optimizer.lr -1", ["optimizer.lr must be above 0, got -1.0"]),
        ("--discriminator.weight 1 --discriminator.layers 5", ["discriminator.layers 5 is too deep for model.image"]),
        ("--run tiny.json", ["--run tiny.json is a file: name a folder"]),
        ("--run tiny.json/run", ["--run tiny.json/run: tiny.json is a file, not a folder"]),
        ("--run .", ["--run is missing"]),
        ("--run exported", ["--run exported exists and is no run folder"]),
    ],
)
def test_training_refuses_before_it_creates_anything(
    options: str, messages: list[str], nothing_happens: Refused
) -> None:
    """Bad numbers came as a traceback out of torch, and left a run folder; an exported tokenizer passed for a run."""
    line = nothing_happens(*TRAIN, *options.split())
    assert all(message in line for message in messages), line


def test_missing_lpips_weights_name_their_places_and_the_way_without(
    here: Path, nothing_happens: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, name in (("TORCH_HOME", "torch"), ("HOME", "home")):
        monkeypatch.setenv(variable, str(here / name))
    for variable in ("FQGAN_VGG16", "FQGAN_LPIPS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setitem(sys.modules, "lpips", None)
    line = nothing_happens(*TRAIN, "--loss.perceptual", "lpips-vgg")
    assert str(here / "torch/hub/checkpoints/vgg16-397923af.pth") in line
    assert "FQGAN_VGG16" in line and "pip install 'fqgan[lpips]'" in line
    assert "--loss.perceptual efficientnet-lite0" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_too_small_for_training_is_named(workers: int, here: Path, refused: Refused) -> None:
    """Such a picture is met during the first epoch: the run has begun, and holds nothing half-written."""
    for i in range(3):
        write_picture(here / "data" / f"{i}.png")
    write_picture(here / "data" / "x.png", (31, 64))
    options = ("--data.source", "data", "--data.workers", workers)
    line = refused(*TRAIN, *options, "--data.small", "refuse")
    assert "data/x.png is 31x64 pixels, below the image size 32" in line
    assert "--data.small" in line
    assert not list((here / "run").glob("checkpoints/*"))
    assert not [path for path in (here / "run").rglob("*") if path.name.startswith(".")]

    # what the line advises works: as long as there is no checkpoint, the settings may change
    assert main([str(argument) for argument in (*TRAIN, *options, "--data.small", "enlarge")]) == 0


def test_more_ranks_than_pictures(nothing_happens: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "start", lambda device: distributed.World(0, 9, torch.device("cpu")))
    line = nothing_happens(*TRAIN, "--train.batch", "9")
    assert "holds 8 picture(s) for 9 ranks" in line


def test_a_run_keeps_its_settings(here: Path, pictures: Path, nothing_happens: Refused) -> None:
    assert main([*TRAIN, "--train.steps", "1"]) == 0
    line = nothing_happens(*TRAIN, "--optimizer.lr", "0.001", "--model.factors.0.codebook-size", "64")
    assert "run was begun with other settings" in line
    assert "model.factors.0.codebook_size: 32 -> 64" in line
    assert "optimizer.lr" not in line, "only what must not change"
    assert "batch" not in line, "only what differs"
    for file in (here / "run").glob("checkpoints/*/tokenizer.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    line = nothing_happens("reconstruct", "run", pictures / "0.png")
    assert "no whole checkpoint in run/checkpoints: tokenizer.safetensors is truncated" in line


def test_a_folder_with_other_files_is_no_run(here: Path, nothing_happens: Refused) -> None:
    write_picture(here / "run" / "holiday.png")
    assert "--run run exists and is no run folder" in nothing_happens(*TRAIN)
    (here / "run" / "config.json").write_text("{}")  # many programs write one: it makes no run
    assert "--run run exists and is no run folder" in nothing_happens(*TRAIN)


def test_a_run_in_use_is_refused(here: Path, tiny: TokenizerRunConfig, nothing_happens: Refused) -> None:
    """Even with other settings and before its first checkpoint."""
    run = RunFolder(here / "run", tiny)
    assert run.open() is None
    assert "run is in use by another process" in nothing_happens(*TRAIN, "--optimizer.lr", "0.1")
    run.close()
    assert main([*TRAIN, "--train.steps", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ("nowhere good.png", ["checkpoint nowhere does not exist"]),
        ("good.png good.png", ["good.png is damaged or no file of torch weights"]),
        ("data good.png", ["data is no run, checkpoint or exported tokenizer: it has no model.safetensors"]),
        ("empty-run good.png", ["run empty-run has no checkpoint yet"]),
        ("truncated good.png", ["truncated/model.safetensors is truncated"]),
        ("foreign good.png", ["foreign/model.safetensors is truncated or no safetensors file"]),
        ("other-model good.png", ["other-model/model.safetensors: tensor", "has shape"]),
        ("huge good.png", ["huge/config.json: key channels must be below 2^63, got 1000000000000000000000"]),
        ("deep good.png", ["deep/config.json: model.res_blocks must be at most 1000, got 1000000000"]),
        ("many good.png", ["many/config.json: model.channel_multipliers has 2000 entries, at most 1000 make sense"]),
        ("wrong-type good.png", ["wrong-type/config.json: key factors must be a list, got 'two'"]),
        ("nested good.png", ["nested/config.json is no readable JSON file"]),
        ("future good.png", ["future/config.json: format_version 99 is not 1"]),
        ("no-config good.png", ["no-config/config.json does not exist"]),
        ("no-kind good.png", ["no-kind/config.json is no config of fqgan"]),
        ("no-model good.png", ["no-model/config.json is no tokenizer's config"]),
        ("unknown-key good.png", ["unknown-key/config.json: unknown key 'chanels'; did you mean 'channels'?"]),
        ("exported good.png --weights ema", ["exported has no moving average"]),
        ("exported good.png --size 34", ["image size 34x34 is no multiple of the tokenizer's downsampling factor 4"]),
        ("exported good.png --out good.png", ["--out good.png is a file"]),
        ("exported good.png --out good.png/x", ["good.png is a file, not a folder"]),
        ("exported good.png nowhere.png", ["nowhere.png does not exist"]),
        ("exported good.png data", ["data holds no picture"]),
        ("exported broken.png", ["broken.png cannot be read as a picture"]),
        ("exported good.png broken.png --max-unreadable 0", ["broken.png cannot be read", "--max-unreadable 0"]),
        ("exported good.png text.png", ["text.png is no picture"]),
        ("exported good.png --tile 30", ["tile 30 is no multiple of the tokenizer's downsampling factor 4"]),
        (
            "exported small.png --whole --fit crop",
            ["small.png has 3x9 pixels, below the downsampling factor 4: --fit pad"],
        ),
        ("exported good.png --whole --size 4000000", ["picture(s) of 4000000x4000000 pixels", "--tile splits"]),
        ("exported good.png --batch 0", ["--batch must be at least 1, got 0"]),
        ("exported good.png --max-unreadable 2", ["--max-unreadable must be between 0 and 1, got 2"]),
    ],
)
def test_reconstruct_refuses_before_it_writes(
    arguments: str, messages: list[str], here: Path, nothing_happens: Refused
) -> None:
    good = write_picture(here / "good.png")
    (here / "broken.png").write_bytes(good.read_bytes()[:60])
    (here / "text.png").write_text("no picture")
    write_picture(here / "small.png", (3, 9))
    (here / "data").mkdir()
    (here / "empty-run" / "checkpoints").mkdir(parents=True)
    config = json.loads((here / "exported" / "config.json").read_text())
    folder = here / arguments.split()[0]
    if not folder.exists():
        spoil(folder.name, shutil.copytree(here / "exported", folder), config)
    line = nothing_happens("reconstruct", *arguments.split())
    assert all(message in line for message in messages), line


def spoil(how: str, folder: Path, config: dict[str, Any]) -> None:
    """Spoil an exported tokenizer; `nowhere` takes it away."""
    weights = folder / "model.safetensors"
    match how:
        case "nowhere":
            shutil.rmtree(folder)
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "foreign":
            weights.write_bytes(b"weights of something else" * 9)
        case "other-model":
            config["model"]["z_channels"] = 64
        case "future":
            config["format_version"] = 99
        case "huge":
            config["model"]["channels"] = 10**21
        case "deep":
            config["model"]["res_blocks"] = 10**9
        case "many":
            config["model"]["channel_multipliers"] = [1] * 2000
        case "wrong-type":
            config["model"]["factors"] = "two"
        case "nested":
            (folder / "config.json").write_text("[" * 100_000)
            return
        case "no-kind":
            config = {"architectures": ["CLIPModel"]}
        case "no-model":
            config = {"kind": "tokenizer"}
        case "unknown-key":
            config["model"]["chanels"] = config["model"].pop("channels")
        case "no-config":
            (folder / "config.json").unlink()
            return
    if folder.exists():
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data nowhere", "nowhere does not exist"),
        ("--data exported", "exported holds no picture"),
        ("--data small --small refuse --workers 0", "small/x.png is 31x64 pixels, below the image size 32"),
        ("--data small --workers 0 --size 30", "image size 30x30 is no multiple of the tokenizer's downsampling"),
        ("--data photos --out small", "--out small is a folder: name a file"),
    ],
)
def test_evaluate_refuses_before_it_writes(options: str, message: str, here: Path, nothing_happens: Refused) -> None:
    write_picture(here / "small" / "x.png", (31, 64))
    assert message in nothing_happens("evaluate", "tokenizer", "exported", *options.split())


def test_a_nan_stops_before_the_update(here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[training.TokenizerTask] = []
    weights: list[dict[str, Tensor]] = []
    compute = training.tokenizer_loss

    class Recorded(training.TokenizerTask):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            trained.append(self)

    def spoiled_loss(*arguments: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        weights.append({name: tensor.clone() for name, tensor in trained[0].model.state_dict().items()})
        total, terms = compute(*arguments, **options)
        return (
            (total * torch.nan, {**terms, "codebook_loss": terms["codebook_loss"] / 0})
            if weights[1:]
            else (
                total,
                terms,
            )
        )

    monkeypatch.setattr(training, "TokenizerTask", Recorded)
    monkeypatch.setattr(training, "tokenizer_loss", spoiled_loss)
    line = refused(*TRAIN)
    assert "step 2: not finite: codebook_loss, gradient of the tokenizer; stopped before the update" in line
    assert line.endswith("the same command resumes from step 1")
    first, second = weights
    after = trained[0].model.state_dict()
    assert any(not torch.equal(tensor, first[name]) for name, tensor in second.items()), "step 1 did train"
    assert all(torch.equal(tensor, second[name]) for name, tensor in after.items())
    assert [path.name for path in (here / "run" / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_learning_rate_that_explodes_is_told(here: Path, refused: Refused) -> None:
    line = refused(*TRAIN, "--optimizer.lr", "1e30")
    assert "step 2: not finite: reconstruction_loss" in line
    assert "Lower optimizer.lr" in line
