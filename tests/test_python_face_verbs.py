"""What users hand to the functions that load, save, train, make and measure: taken as meant, or refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faces import NAN, message, tokenizer
from generators import tiny
from sets import write_pictures
from test_tokenizer import small

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import SamplingConfig, TokenizerRunConfig
from fqgan.engine.devices import pick_device
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["tokenizer"]  # fixtures


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: FactorizedTokenizer) -> Path:
    """An exported tokenizer `tok` and generator `gen`."""
    folder = tmp_path_factory.mktemp("models")
    fqgan.save_tokenizer(tokenizer, folder / "tok")
    fqgan.save_generator(tiny(), str(folder / "gen"))
    return folder


@pytest.mark.parametrize("path", [None, 3, b"tok", True, ["tok"], object(), "a\0b", "n" * 5000, "", "hf:", "hf:a"])
def test_what_is_no_path_is_refused(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, generator = small(1), tiny()
    calls = [lambda: fqgan.load_tokenizer(path), lambda: fqgan.load_generator(path)]
    if path:
        calls += [
            lambda: fqgan.save_tokenizer(model, path),
            lambda: fqgan.save_generator(generator, path),
            lambda: model.save_pretrained(path),
        ]
    for call in calls:
        with pytest.raises(UserError) as error:
            call()
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_is_refused(models: Path, tokenizer: FactorizedTokenizer, tmp_path: Path) -> None:
    assert "tokenizer must be a FactorizedTokenizer, got " in message(lambda: fqgan.save_tokenizer(tiny(), tmp_path))
    wrong: Any = tmp_path
    assert "tokenizer must be a FactorizedTokenizer" in message(fqgan.save_tokenizer, wrong, tokenizer)  # pyright: ignore
    assert "generator must be a FAR, got None" in message(fqgan.save_generator, None, tmp_path)  # pyright: ignore
    assert "tokenizer must be a FactorizedTokenizer" in message(lambda: tiny().carry("tok"))  # pyright: ignore
    given: Any = tokenizer
    assert "tokenizer must be a path" in message(fqgan.load_generator, models / "gen", tokenizer=given)
    assert "don't belong together" in message(fqgan.load_generator, models / "gen", tokenizer=models / "tok")
    assert not fqgan.load_generator(models / "gen", tokenizer=None).has_tokenizer
    with pytest.raises(TypeError, match="wieghts"):
        FactorizedTokenizer.from_pretrained(models / "tok", wieghts="ema")


@pytest.mark.parametrize("value", ["x", None, 1, [], {}, "EMA"])
def test_unknown_weights_and_precisions_are_refused(models: Path, value: Any) -> None:
    for load, name in ((fqgan.load_tokenizer, "tok"), (fqgan.load_generator, "gen")):
        assert "weights must be auto, ema or raw" in message(load, models / name, weights=value)
        assert "precision must be float32 or bf16" in message(load, models / name, precision=value)


@pytest.mark.parametrize("device", ["nope", "", None, -1, True, 1.5, "CPU", "meta", "hpu", object()])
def test_unknown_devices_are_refused(models: Path, device: Any) -> None:
    for load, name in ((fqgan.load_tokenizer, "tok"), (fqgan.load_generator, "gen")):
        assert message(load, models / name, device).startswith("device must be auto, cpu, cuda")


def test_devices_that_are_not_there_are_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", torch.device("cuda")):
        assert "no CUDA device is available" in message(fqgan.load_tokenizer, models / "tok", device)
    for device in ("auto", "cpu", "cpu:0", torch.device("cpu")):
        assert pick_device(device) == torch.device("cpu")
        assert fqgan.load_tokenizer(models / "tok", device).post_quant.weight.device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda") and pick_device("cuda:1") == torch.device("cuda", 1)
    assert "there is no cuda:2: this machine has 2" in message(pick_device, "cuda:2")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def generator(tokenizer: FactorizedTokenizer, tmp_path: Path) -> Path:
    """A generator that carries the tokenizer of this file's tests."""
    model = tiny(codebook_sizes=(16, 17), grid=(16, 16), num_classes=3)
    model.label_names = ("cat", "dog", "emu")
    model.carry(tokenizer)
    return fqgan.save_generator(model, tmp_path / "generator")


def test_extract_writes_what_the_command_writes(models: Path, pictures: Path, tmp_path: Path) -> None:
    done = fqgan.extract(models / "tok", data=pictures, out=tmp_path / "a", crops="flip", workers=0, shard_images=3)
    assert (done.out, done.images, done.encoded, done.unreadable) == (tmp_path / "a", 8, 8, [])
    assert len(done.manifest.shards) == 3 and done.manifest.num_crops == 2 and done.seconds > 0
    options = ["--crops", "flip", "--workers", "0", "--shard-images", "3"]
    assert main(["extract", str(models / "tok"), "--data", str(pictures), "--out", str(tmp_path / "b"), *options]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    again = fqgan.extract(str(models / "tok"), data=str(pictures), out=tmp_path / "b", crops="flip", shard_images=3)
    assert again.encoded == 0 and again.manifest == done.manifest


def test_generate_writes_what_the_command_writes(generator: Path, tmp_path: Path) -> None:
    settings = {"classes": "emu,0", "num": np.int64(3), "batch": 2, "cfg_scale": 3, "top_k": [0, 8], "npz": True}
    done = fqgan.generate(generator, out=tmp_path / "a", **settings)
    assert (done.out, done.made, done.settings.classes) == (tmp_path / "a", 3, (2, 0)) and done.seconds > 0
    assert done.settings.sampling == SamplingConfig(cfg_scale=(3.0,), top_k=(0, 8))
    options = ["--classes", "emu,0", "--num", "3", "--batch", "2", "--cfg-scale", "3", "--top-k", "0", "8", "--npz"]
    assert main(["generate", str(generator), "--out", str(tmp_path / "b"), *options]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert fqgan.generate(generator, out=tmp_path / "a", **settings).made == 0


@pytest.mark.parametrize(
    ("settings", "told_"),
    [
        ({"crop": "ten"}, "fqgan.extract: unknown key 'crop'; did you mean 'crops'?"),
        ({"history": 1}, "unknown key 'history'"),
        ({"crops": "nine"}, "crops must be one of center, flip, ten; got 'nine'"),
        ({"batch": "4"}, "batch must be int, got '4'"),
        ({"batch": None}, "batch must be int, got None"),
        ({"batch": True}, "batch must be int, got True"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"batch": 10**5000}, "batch must be below 2^63"),
        ({"verify": "yes"}, "verify must be bool, got 'yes'"),
        ({"max_unreadable": NAN}, "max-unreadable must be between 0 and 1, got nan"),
        ({"range": (0, 4095)}, "range.0 must be str, got 0"),
        ({"data": 3}, "data must be str, got 3"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"out": None}, "out must be Path, got None"),
        ({"out": "a\0b"}, "is no name of a file"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, mps; got 'gpu'"),
    ],
)
def test_settings_of_extract_are_refused(
    settings: dict[str, Any], told_: str, models: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told_ in message(fqgan.extract, models / "tok", **{"data": pictures, "out": "out", **settings})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "told_"),
    [
        ({"clases": "0"}, "fqgan.generate: unknown key 'clases'; did you mean 'classes'?"),
        ({"classes": "dgo"}, "unknown class 'dgo'; did you mean 'dog'?"),
        ({"cfg_scale": "3"}, "cfg_scale.0 must be float, got '3'"),
        ({"cfg_scale": -1}, "cfg_scale must be at least 0"),
        ({"top_k": 5.0}, "top_k.0 must be int, got 5.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"checkpoint": 3}, "checkpoint must be Path, got 3"),
        ({"checkpoint": "hf:a"}, "hf:a is no address on the hub"),
    ],
)
def test_settings_of_generate_are_refused(settings: dict[str, Any], told_: str, generator: Path) -> None:
    out = generator.parent / "out"
    assert told_ in message(fqgan.generate, **{"checkpoint": generator, "out": out, **settings})
    assert not out.exists()


def test_training_takes_a_config_and_a_folder(base: TokenizerRunConfig, tmp_path: Path) -> None:
    run = fqgan.train_tokenizer(base, str(tmp_path / "run"))
    assert run == tmp_path / "run" and fqgan.load_tokenizer(run).num_factors == 2
    assert "config must be a TokenizerRunConfig, got 'photos-dual'" in message(
        fqgan.train_tokenizer, "photos-dual", tmp_path / "other"
    )
    assert "config must be a GeneratorRunConfig" in message(fqgan.train_generator, base, tmp_path / "other")
    assert "run must be a path" in message(fqgan.train_tokenizer, base, 3)
    for steps in ("2", np.int64(2)):
        config = replace(base, train=replace(base.train, steps=steps))
        assert "train.steps must be int" in message(fqgan.train_tokenizer, config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_evaluate_measures_what_the_command_measures(models: Path, generator: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", 6, 0, size=64)
    fast: dict[str, Any] = {"features": "efficientnet-lite0:stage3@32", "workers": 0, "size": 64}
    found = fqgan.evaluate(models / "tok", data=pictures, device="cpu", **fast)
    found.write(str(tmp_path / "eval.json"))
    options = ["--features", fast["features"], "--workers", "0", "--size", "64", "--device", "cpu"]
    command = ["evaluate", "tokenizer", str(models / "tok"), "--data", str(pictures), *options]
    assert main([*command, "--out", str(tmp_path / "other.json")]) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("eval.json", "other.json"))
    assert one["metrics"] == two["metrics"] == found.metrics and one["protocol"] == two["protocol"]
    made = fqgan.evaluate(generator, data=pictures, num=3, samples=tmp_path / "made", device="cpu", **fast)
    assert made.metrics["frechet"] >= 0 and made.protocol["samples"]["count"] == 3
    inside = message(fqgan.evaluate, generator, data=pictures, num=3, samples=pictures / "made")
    assert inside.startswith("samples ") and "lies in the input" in inside
    assert "num must be at least 2" in message(fqgan.evaluate, generator, data=pictures, num=1, samples=tmp_path / "s")
