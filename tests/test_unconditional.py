"""Generators without classes: how they are trained, drawn from, kept and measured; and class tables that change."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators import TINY, tiny
from PIL import Image
from sets import FAST
from stores import make_store

import fqgan
from fqgan.base import schema
from fqgan.base.classes import drawn_classes
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import GeneratorRunConfig, SamplingConfig, TokenizerRunConfig
from fqgan.config.presets import child, get_generator
from fqgan.data.tokens import TokenStore
from fqgan.data.transforms import to_uint8
from fqgan.engine.distributed import World
from fqgan.generator.model import FAR
from fqgan.generator.task import GeneratorTask
from fqgan.tokenizer.model import FactorizedTokenizer

CPU = World(0, 1, torch.device("cpu"))
Refused = Callable[..., str]


def small(data: Path, **changes: Any) -> GeneratorRunConfig:
    config = child(
        get_generator("far-tiny"),
        model={"width": 32, "depth": 1, "heads": 2, "mlp_multiple": 16},
        optimizer={"warmup_steps": 1},
        train={
            "batch": 4,
            "steps": 2,
            "ema_decay": 0.0,
            "precision": "float32",
            "device": "cpu",
            "image_every": 0,
            "sample_images": 4,
            "log_every": 1,
        },
    )
    return child(replace(config, data=str(data)), **changes)


@pytest.fixture
def home(tokenizer: FactorizedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store of images of no class, one of three classes, and the settings of a run."""
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "flat", tokenizer, names=(), labelled=False, side=32)
    make_store(tmp_path / "store", tokenizer, side=32)
    schema.save(small(Path()), tmp_path / "small.json")
    return tmp_path


def trained(data: str, run: str, *options: str) -> FAR:
    command = ["train-generator", "far-tiny", "--config", "small.json", "--data", data, "--run", run, *options]
    assert main(command) == 0
    return fqgan.load_generator(run)


def test_a_folder_of_pictures_without_classes_end_to_end(
    pictures: Path, tiny: TokenizerRunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FQGAN_CACHE", str(tmp_path / "cache"))
    fqgan.train_tokenizer(tiny, "tokenizer")
    fqgan.extract("tokenizer", data=pictures, out="store", device="cpu")
    assert TokenStore.open("store").num_classes == 0
    schema.save(small(Path()), tmp_path / "small.json")
    trained("store", "run", "--validation", "store")
    generate = ["generate", "run", "--classes", "none", "--num", "5", "--device", "cpu", "--out"]
    assert main([*generate, "samples"]) == 0 and main([*generate, "more"]) == 0
    content = json.loads(Path("samples/samples.json").read_text())
    assert [row["label"] for row in content["pictures"]] == [-1] * 5 and content["class_names"] == {}
    assert content["settings"]["sampling"]["cfg_scale"] == [1.0]
    assert Path("samples/000004.png").read_bytes() == Path("more/000004.png").read_bytes()
    measure = ["evaluate", "generator", "run", "--data", str(pictures), "--num", "6", "--device", "cpu", *FAST]
    assert main([*measure, "--labels", "uniform"]) == 0
    side = json.loads(Path("run/eval.json").read_text())["protocol"]["samples"]
    assert side["draw"] == "none" and side["labels"] == {"classes": 0, "fewest": 0, "most": 0, "unlabelled": 6}
    assert main(["evaluate", "likelihood", "run", "--data", str(pictures), "--device", "cpu", "--workers", "0"]) == 0
    assert json.loads(Path("run/likelihood/eval.json").read_text())["images"] == 8


def test_a_store_without_labels_trains_the_null_class(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = trained("flat", "run", "--validation", "store", "--train.validate-every", "1")
    assert "without classes (there are none): an unconditional generator" in capsys.readouterr().out
    assert (generator.null_class, len(generator.class_embedding.weight), generator.label_names) == (0, 1, ())
    config = schema.load(GeneratorRunConfig, home / "run" / "config.json")
    assert config.unconditional and config.sampling.cfg_scale == (1.0,)
    with Image.open("run/images/step-00000002.png") as image:
        assert image.size == (2 * 34 + 2, 2 * 34 + 2), "no column of names"
    assert main(["train-generator", "far-tiny", "--config", "small.json", "--data", "flat", "--run", "run"]) == 0


def test_a_store_with_labels_is_trained_without_them_on_request(home: Path) -> None:
    """To the same weights as from a store without labels: nothing of the classes is left."""
    generator, other = trained("store", "run", "--unconditional"), trained("store", "usual")
    assert (generator.null_class, generator.label_names) == (0, ()) and other.null_class == 3
    config = small(home / "store", model={"class_dropout": 0.5}).resolved((32, 16), (8, 8), 0)
    task = GeneratorTask(config, CPU, TokenStore.open("store"), None)
    assert next(iter(task.batches(0))).labels.tolist() == [0] * 4 and task.record()["label_names"] == ()
    manifest = json.loads(Path("store/manifest.json").read_text())
    for shard in manifest["shards"]:
        np.save(f"store/{shard['labels']['name']}", np.full(shard["images"], -1))
    Path("store/manifest.json").write_text(json.dumps({**manifest, "num_classes": 0, "label_names": []}))
    for one, two in zip(generator.parameters(), trained("store", "bare").parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_is_drawn_is_of_no_class() -> None:
    generator = tiny(num_classes=0)
    codes = generator.generate(num=3, seed=4)
    assert codes.shape == (3, 3, 3, 4)
    for labels in ([-1] * 3, [0] * 3, [generator.null_class] * 3):
        assert torch.equal(generator.generate(labels, seed=4, batch=2), codes)
    assert torch.equal(generator.generate(num=3, seed=4, cfg_scale=1), codes)
    rule = generator.sampler(2).rule
    assert rule and not rule.guided
    with pytest.raises(UserError, match="cfg_scale guides towards a class, and there is none"):
        generator.generate(num=3, cfg_scale=3)
    for options in ({}, {"labels": [0], "num": 1}):
        with pytest.raises(UserError, match="labels must be given, or else num"):
            generator.generate(**options)
    with pytest.raises(UserError, match="labels must be a list of classes from 0 to 0"):
        generator.generate([1])


def test_a_conditional_generator_draws_of_no_class_too(tokenizer: FactorizedTokenizer, tmp_path: Path) -> None:
    generator = tiny(codebook_sizes=(32, 16), grid=(8, 8), num_classes=3)
    codes = generator.generate(num=4, seed=2)
    for scale in (1.0, 5.0):
        torch.testing.assert_close(generator.generate([3, -1, 3, 3], seed=2, cfg_scale=scale), codes)
    assert not torch.equal(generator.generate([0] * 4, seed=2), codes)
    generator.carry(tokenizer)
    fqgan.save_generator(generator, tmp_path / "generator")
    command = ["generate", tmp_path / "generator", "--classes", "none", "--num", 4, "--seed", 2, "--device", "cpu"]
    assert main([*map(str, command), "--npz", "--out", str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "samples.npz") as arrays, torch.no_grad():
        expected = to_uint8(tokenizer.decode(codes)).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(arrays["arr_0"], expected)
        assert arrays["arr_1"].tolist() == [-1] * 4


def test_classes_to_draw_by_word() -> None:
    names = ("cat", "none")
    assert drawn_classes("none", 3, ()) == drawn_classes("none", 0, ()) == drawn_classes("all", 0, ()) == (-1,)
    assert drawn_classes("none", 2, names) == (1,) and drawn_classes("all", 2, names) == (0, 1)
    with pytest.raises(UserError, match="--classes 0: this generator is unconditional, it has no classes"):
        drawn_classes("0", 0, ())


def test_sampling_without_a_class() -> None:
    usual = SamplingConfig(temperature=(0.5,))
    assert usual.resolved(conditional=True) is usual
    assert usual.resolved(conditional=False) == SamplingConfig(cfg_scale=(1.0,), temperature=(0.5,))
    assert SamplingConfig(cfg_scale=(1.0, 1.0)).resolved(conditional=False).cfg_scale == (1.0,)


def test_guidance_without_a_class_is_refused(home: Path, tokenizer: FactorizedTokenizer, refused: Refused) -> None:
    generator = tiny(codebook_sizes=(32, 16), grid=(8, 8), num_classes=0)
    generator.carry(tokenizer)
    fqgan.save_generator(generator, "generator")
    line = refused("generate", "generator", "--cfg-scale", 3, "--out", "out", "--device", "cpu")
    assert "cfg_scale guides towards a class, and there is none here: leave it out" in line
    assert "it has no classes" in refused("generate", "generator", "--classes", "0,1", "--out", "out")
    assert not Path("out").exists()


def test_a_card_and_an_export_of_an_unconditional_generator(tmp_path: Path) -> None:
    generator = tiny(num_classes=0)
    generator.save_pretrained(tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "# Unconditional image generator, 3 factors" in card and "(FAR): no classes, 3 x 4 positions" in card
    assert "generator.generate(num=3, seed=0)" in card
    again = fqgan.load_generator(tmp_path / "folder")
    assert again.null_class == 0 and again.fingerprint() == generator.fingerprint()


def test_an_unconditional_generator_in_the_released_layout(tmp_path: Path) -> None:
    sizes = {"codebook_sizes": (8, 8), "grid": (4, 4), "width": 64, "heads": 1, "mlp_multiple": 256}
    generator = tiny(num_classes=0, legacy=True, **sizes)
    fqgan.save_generator(generator, tmp_path / "folder")
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "far.pt"), "--to", "released"]) == 0
    again = fqgan.load_generator(tmp_path / "far.pt")
    assert again.null_class == 0 and again.fingerprint() == generator.fingerprint()


def initial(home: Path, tokenizer: FactorizedTokenizer, names: tuple[str, ...], count: int) -> FAR:
    """A generator to start from, in the folder `initial`."""
    config = small(home / "store").model
    torch.manual_seed(7)
    model = FAR(replace(config, codebook_sizes=(32, 16), grid=(8, 8), num_classes=count))
    model.label_names = names
    model.carry(tokenizer)
    fqgan.save_generator(model, "initial")
    return model


@pytest.mark.parametrize(
    ("names", "count", "options", "kept", "said"),
    [
        (("emu", "cow", "cat", "bat"), 4, [], {0: 2, 2: 0}, "2 classes of the same name keep their rows"),
        (("dog", "cat", "emu"), 3, [], {0: 1, 1: 0, 2: 2}, "3 classes of the same name"),
        ((), 5, [], {}, "0 classes of the same name keep their rows of the class table, 3 start afresh"),
        ((), 3, [], {0: 0, 1: 1, 2: 2}, ""),
        (("cat", "dog", "emu"), 3, [], {0: 0, 1: 1, 2: 2}, ""),
        (("cat", "dog"), 2, ["--unconditional"], {}, "0 start afresh"),
        ((), 0, [], {}, "3 start afresh"),
    ],
)
def test_init_takes_classes_by_name(
    names: tuple[str, ...],
    count: int,
    options: list[str],
    kept: dict[int, int],
    said: str,
    home: Path,
    tokenizer: FactorizedTokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The store's classes are cat, dog, emu. At a learning rate of 0 the start is what is saved."""
    before = initial(home, tokenizer, names, count)
    rest = ["--init", "initial", "--optimizer.lr", "1e-30", "--optimizer.weight-decay", "0"]
    after = trained("store", "run", *rest, *options)
    out = capsys.readouterr().out
    assert (said in out) if said else ("class table" not in out)
    table, old = after.class_embedding.weight, before.class_embedding.weight
    torch.testing.assert_close(table[-1], old[-1])
    for label in range(after.null_class):
        same = [row for row in range(len(old)) if torch.allclose(table[label], old[row])]
        assert same == ([kept[label]] if label in kept else [])
        assert 0.01 < table[label].std() < 0.03
    for name, tensor in before.state_dict().items():
        if name != "class_embedding.weight":
            torch.testing.assert_close(after.state_dict()[name], tensor)


def test_resolved_run_configs_say_whether_they_are_unconditional() -> None:
    open_ = GeneratorRunConfig(model=replace(TINY, codebook_sizes=(), grid=(), num_classes=0))
    found = open_.resolved((7, 11, 5), (3, 4), 6)
    assert found.model == TINY and not found.unconditional and found.sampling.cfg_scale == (2.0,)
    for config, classes in ((open_, 0), (replace(open_, unconditional=True), 6)):
        found = config.resolved((7, 11, 5), (3, 4), classes)
        assert found.unconditional and found.model.num_classes == 0
        assert found.resolved((7, 11, 5), (3, 4), classes) == found
