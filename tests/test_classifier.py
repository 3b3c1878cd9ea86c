"""`fqgan train-classifier`, and its features as a network that measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import contents, lines

from fqgan.classifier.model import Classifier, load_classifier
from fqgan.cli import main
from fqgan.commands.train_classifier import COMMAND, PRESETS
from fqgan.nets.measuring import load_network

Refused = Callable[..., str]
TINY = ("--model.image-size", "8", "--model.channels", "8", "--model.stages", "2", "--model.stem", "1")
FAST = ("--optimizer.warmup-steps", "0", "--optimizer.lr", "0.01", "--train.ema-decay", "0.8")
QUIET = ("--train.batch", "8", "--train.precision", "float32", "--data.workers", "0", "--train.device", "cpu")
COLOURS = ((200, 60, 40), (40, 90, 210), (70, 180, 60))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of three classes, each of its colour with noise."""
    folder = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    for i in range(24):
        place = folder / f"class{i % 3}"
        place.mkdir(exist_ok=True)
        pixels = rng.normal(COLOURS[i % 3], 40, (10, 9, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i:02d}.png")
    return folder


def command(data: Path, run: Path, *options: str, steps: int = 30) -> list[str]:
    given = ("--data.source", str(data), "--data.validation", str(data), "--run", str(run))
    ends = ("--train.steps", str(steps), "--train.validate-every", "15", "--train.checkpoint-every", "15")
    return ["train-classifier", "resnet-32", *given, *ends, *TINY, *FAST, *QUIET, *options]


@pytest.fixture(scope="module")
def trained(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "classifier"
    assert main(command(coloured, run)) == 0
    return run


def test_it_learns_and_its_features_measure(trained: Path, coloured: Path) -> None:
    assert [line["val_accuracy"] for line in lines(trained) if "val_accuracy" in line][-1] == 1
    network = load_network(f"classifier:{trained}")
    assert (network.name, network.dim, network.num_classes, network.genuine) == ("classifier", 16, 3, False)
    images = torch.tensor(COLOURS, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 12, 12)
    found = network(images)
    assert found.logits is not None and found.logits.argmax(1).tolist() == [0, 1, 2]
    with torch.inference_mode():
        assert torch.equal(load_classifier(trained).outputs(found.pooled), found.logits)
    # another network has another name in the protocol
    newest = max((trained / "checkpoints").iterdir())
    assert load_network(f"classifier:{newest}").weights == network.weights
    assert load_network(f"classifier:{newest.parent / 'step-00000015'}").weights != network.weights


def test_the_same_command_resumes_to_the_bit(trained: Path, coloured: Path, tmp_path: Path) -> None:
    run = tmp_path / "resumed"
    for steps in (15, 30):
        assert main(command(coloured, run, "--optimizer.schedule", "constant", steps=steps)) == 0
    straight = tmp_path / "straight"
    assert main(command(coloured, straight, "--optimizer.schedule", "constant")) == 0
    a, b = contents(run, 30), contents(straight, 30)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_preset_builds() -> None:
    for name in PRESETS:
        config, run = COMMAND.parse([name, "--run", "x", "--data.source", "cifar10", "--model.num-classes", "10"])
        with torch.device("meta"):
            logits = Classifier(config.model)(torch.zeros(2, 3, config.model.image_size, config.model.image_size))
        assert run == Path("x") and logits.shape == (2, 10)


def test_a_mistake_is_told_in_one_line_and_leaves_nothing(
    coloured: Path, pictures: Path, trained: Path, tmp_path: Path, refused: Refused
) -> None:
    run = tmp_path / "run"
    assert "unknown preset 'resnet-23'; did you mean 'resnet-32'?" in refused("train-classifier", "resnet-23")
    assert "holds pictures without a class: a classifier needs labels" in refused(*command(pictures, run))
    (one := tmp_path / "one" / "class0").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(one / "a.png")
    assert "has one class only" in refused(*command(one.parent, run))
    assert "has the label 2, and the classifier 2 classes" in refused(
        *command(coloured, run, "--model.num-classes", "2")
    )
    assert "too small for model.stages 6" in refused(*command(coloured, run, "--model.stages", "6"))
    assert "label_smoothing must be below 1" in refused(*command(coloured, run, "--label-smoothing", "1"))
    assert not run.exists()
    assert "model.channels" in refused(*command(coloured, trained, "--model.channels", "9"))


def test_a_damaged_classifier_is_refused(trained: Path, tmp_path: Path, refused: Refused, coloured: Path) -> None:
    options = ("--workers", "0", "--no-cache", "--out", str(tmp_path / "out.json"))
    argv = ("evaluate", "samples", coloured, coloured, "--features")
    assert "is no run or checkpoint of fqgan train-classifier" in refused(*argv, f"classifier:{coloured}", *options)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    assert "has no checkpoint yet" in refused(*argv, f"classifier:{tmp_path / 'empty'}", *options)
    assert not (tmp_path / "out.json").exists()
