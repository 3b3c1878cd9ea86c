"""Likelihood of codes: against the loss and all logits, summed over all images there are, and `evaluate likelihood`."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators import tiny
from PIL import Image
from processes import on_two_ranks
from sets import write_pictures
from stores import make_store
from test_mps import rehearse

import fqgan
from fqgan.base.errors import UserError
from fqgan.base.spread import spread_evenly
from fqgan.cli import main
from fqgan.config.evaluation import LikelihoodEvaluation
from fqgan.config.presets import child, get_generator
from fqgan.data.tokens import TokenStore, is_store
from fqgan.engine.distributed import World
from fqgan.engine.run import read_stats
from fqgan.evaluation.likelihood import evaluate_likelihood
from fqgan.generator.cross_entropy import linear_log_likelihood
from fqgan.generator.likelihood import class_bits
from fqgan.generator.model import FAR
from fqgan.generator.task import train_generator
from fqgan.tokenizer.model import FactorizedTokenizer

CPU = World(0, 1, torch.device("cpu"))
HEADS = ("linear", "mlp", "ar")
Refused = Callable[..., str]


def codes_of(model: FAR, b: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    sizes, grid = model.config.codebook_sizes, model.config.grid
    return torch.stack([torch.randint(size, (b, *grid), generator=rng) for size in sizes], 1)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sizes", [(9,), (7, 5), (7, 11, 5)])
def test_log_likelihood_is_the_loss_code_by_code(head: str, sizes: tuple[int, ...], in_float64: None) -> None:
    model = tiny(head=head, codebook_sizes=sizes, dropout=0.5)
    codes, labels = codes_of(model), torch.tensor([0, 5, -1])
    found = model.log_likelihood(codes, labels)
    assert found.shape == codes.shape and (found < 0).all()
    means = -found.mean((0, 2, 3)) * math.log(2)
    torch.testing.assert_close(means, torch.stack(model.loss(codes, labels).cross_entropy).detach())
    for i, logits in enumerate(model(codes, [0, 5, model.null_class])):
        each = logits.log_softmax(-1).gather(-1, codes[:, i].flatten(1)[..., None])[..., 0] / math.log(2)
        torch.testing.assert_close(found[:, i].flatten(1), each.detach())
    model.train()
    assert torch.equal(model.log_likelihood(codes, labels), found) and model.training and model.blocks[0].training
    assert model.log_likelihood(codes[:0], []).shape == (0, *codes.shape[1:])


@pytest.mark.parametrize("head", HEADS)
def test_the_probabilities_of_all_images_add_up_to_one(head: str, in_float64: None) -> None:
    model = tiny(head=head, codebook_sizes=(2, 3), grid=(1, 2))
    every = itertools.product(range(2), range(2), range(3), range(3))
    codes = torch.tensor(list(every)).view(-1, 2, 1, 2)
    for label in (1, model.null_class):
        p = model.log_likelihood(codes, [label] * len(codes)).sum((1, 2, 3)).exp2()
        assert p.sum().item() == pytest.approx(1) and p.max() > 2 / len(codes)


def test_log_likelihood_in_float32_and_under_autocast() -> None:
    model = tiny()
    codes, labels = codes_of(model), [0, 1, 2]
    plain = model.log_likelihood(codes, labels)
    assert plain.dtype == torch.float32 and not plain.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        rounded, loss = model.log_likelihood(codes, labels), model.loss(codes, labels)
    assert rounded.dtype == torch.float32 and 0 < (rounded - plain).abs().max() < 0.3
    means = -rounded.mean((0, 2, 3)) * math.log(2)
    torch.testing.assert_close(means, torch.stack(loss.cross_entropy).detach(), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="codes of factor 0 must lie in"):
        model.log_likelihood(codes + 7, labels)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_change_no_likelihood(chunk: int) -> None:
    x, weight, targets = torch.randn(50, 8), torch.randn(13, 8), torch.randint(13, (50,))
    expected = (x @ weight.T).log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(linear_log_likelihood(x, weight, targets, chunk), expected)


@pytest.fixture
def home(tokenizer: FactorizedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a generator whose outputs are not zero, and a store of 12 images of its tokenizer's codes."""
    monkeypatch.chdir(tmp_path)
    model = tiny(codebook_sizes=(32, 16), grid=(4, 4), num_classes=3)
    model.label_names = ("emu", "cat", "dog")
    model.carry(tokenizer)
    fqgan.save_generator(model, "generator")
    make_store(tmp_path / "store", tokenizer)
    return tmp_path


def write_classes(folder: Path, count: int) -> None:
    """Pictures in class folders that are named as the generator's classes."""
    write_pictures(folder, count, 0, classes=3)
    for old, new in zip(("class0", "class1", "class2"), ("dog", "emu", "cat"), strict=True):
        (folder / old).rename(folder / new)


def likelihood(*argv: object) -> dict[str, Any]:
    assert main(["evaluate", "likelihood", *map(str, argv), "--device", "cpu", "--out", "out"]) == 0
    return json.loads(Path("out/eval.json").read_text())


def test_a_store_is_measured_image_by_image(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = likelihood("generator", "--data", "store", "--batch", 5, "--shown", 4)
    assert "bits an image" in capsys.readouterr().out
    store, generator = TokenStore.open("store"), fqgan.load_generator("generator")
    codes, labels = store.take(range(12), [store.center_crop] * 12)
    labels = torch.tensor([1, 2, 0])[labels]  # cat, dog, emu by name
    bits = -generator.log_likelihood(codes, labels).double()
    each = bits.sum((1, 2, 3))
    metrics = result["metrics"]
    assert metrics["bits_per_image"] == pytest.approx(each.mean().item())
    assert metrics["bits_per_image_error"] == pytest.approx(np.std(each.numpy(), ddof=1) / 12**0.5)
    assert metrics["bits_per_position"] == pytest.approx(each.mean().item() / 16)
    assert metrics["bits_per_dimension"] == pytest.approx(each.mean().item() / (16 * 16 * 3))
    assert metrics["uniform_bits_per_image"] == 16 * (5 + 4)
    assert [own["bits_per_image"] for own in result["factors"].values()] == pytest.approx(
        bits.sum((2, 3)).mean(0).tolist()
    )
    assert list(result["factors"]) == list(result["map"]) == ["visual", "semantic"]
    np.testing.assert_allclose(result["map"]["semantic"], bits[:, 1].mean(0))
    order = each.argsort(descending=True).tolist()
    assert [entry["index"] for entry in result["worst"]] == order[:4]
    assert [entry["index"] for entry in result["best"]] == order[::-1][:4]
    assert result["worst"][0]["bits"] == pytest.approx(each.max().item())
    rows = list(csv.DictReader(Path("out/images.csv").read_text().splitlines()))
    assert [int(row["index"]) for row in rows] == order and rows[0]["class"] == ("emu", "cat", "dog")[labels[order[0]]]
    assert float(rows[3]["semantic bits"]) == pytest.approx(bits[order[3], 1].sum().item(), abs=1e-3)
    with Image.open("out/worst-and-best.png") as image:
        assert image.width > 4 * 96 and image.height > 2 * 96
    assert Path("out/map.png").stat().st_size
    # again, into the same folder; another batch moves rounding only
    again = likelihood("generator", "--data", "store", "--batch", 1)
    assert again["metrics"] == pytest.approx(metrics) and again["protocol"] == result["protocol"]
    assert main(["evaluate", "compare", "out", "out"]) == 0


def test_classes_that_the_generator_does_not_know_may_be_left_aside(home: Path, tokenizer: FactorizedTokenizer) -> None:
    make_store(home / "renamed", tokenizer, names=("bat", "cow", "yak"))
    make_store(home / "unlabelled", tokenizer, names=(), labelled=False)
    result = likelihood("generator", "--data", "renamed", "--labels", "none")
    store, generator = TokenStore.open("renamed"), fqgan.load_generator("generator")
    codes, _ = store.take(range(12), [store.center_crop] * 12)
    bits = -generator.log_likelihood(codes, [-1] * 12).sum((1, 2, 3)).mean().item()
    assert result["metrics"]["bits_per_image"] == pytest.approx(bits) and result["protocol"]["classes"] == "none"
    assert likelihood("generator", "--data", "unlabelled")["protocol"]["classes"] == "none"


def test_some_images_are_spread_over_the_data(home: Path) -> None:
    result = likelihood("generator", "--data", "store", "--images", 3)
    assert result["images"] == 3
    assert sorted(entry["index"] for entry in result["worst"]) == spread_evenly(12, 3)


def test_images_have_the_likelihood_of_their_extracted_codes(home: Path) -> None:
    """Classes go by name, in whatever order; unreadable pictures are left out and counted."""
    write_classes(home / "pictures", 9)
    Path("pictures/cat/broken.png").write_bytes(b"no picture")
    fqgan.extract("generator/tokenizer", data="pictures", out="extracted", size=16, device="cpu", max_unreadable=1.0)
    assert is_store("extracted") and not is_store("pictures") and not is_store("nowhere")
    results = [likelihood("generator", "--data", data, "--workers", 0) for data in ("extracted", "pictures")]
    assert results[0]["images"] == results[1]["images"] == 9
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"])
    assert results[0]["map"]["visual"][1] == pytest.approx(results[1]["map"]["visual"][1])
    assert [result["protocol"]["data"]["unreadable"] for result in results] == [1, 1]
    assert results[1]["worst"][0]["name"].startswith("pictures/")
    # and of no class on request
    result = likelihood("generator", "--data", "pictures", "--labels", "none", "--workers", 0)
    assert result["protocol"]["classes"] == "none" and {entry["class"] for entry in result["worst"]} == {""}
    assert result["metrics"]["bits_per_image"] != pytest.approx(results[1]["metrics"]["bits_per_image"])


def test_untrained_every_class_is_equally_likely(home: Path, tokenizer: FactorizedTokenizer) -> None:
    """No bit is saved, and of equal classes the first is taken: a third of the images has it."""
    model = FAR(replace(fqgan.load_generator("generator").config))
    model.carry(tokenizer)
    fqgan.save_generator(model, "untrained")
    metrics = likelihood("untrained", "--data", "store", "--zero-shot")["metrics"]
    assert metrics["bits_per_image"] == pytest.approx(metrics["uniform_bits_per_image"], rel=1e-5)
    assert metrics["zero_shot_top1"] == metrics["zero_shot_top1_chance"] == pytest.approx(1 / 3)
    assert "zero_shot_top5" not in metrics


def test_bits_of_all_classes_are_those_of_each(home: Path) -> None:
    generator = fqgan.load_generator("generator")
    codes, _ = TokenStore.open("store").take([0, 1, 2, 3], [0] * 4)
    found = class_bits(generator, codes, batch=5)
    for label in range(3):
        alone = -generator.log_likelihood(codes, [label] * 4).sum((1, 2, 3))
        torch.testing.assert_close(found[:, label].float(), alone)


def test_classes_that_decide_the_codes_are_found_by_likelihood(
    tokenizer: FactorizedTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of an image's codes are its class's. Trained on some images, tried on others."""
    names = tuple("abcdefg")
    make_store(tmp_path / "store", tokenizer, images=280, names=names)
    make_store(tmp_path / "held-out", tokenizer, images=21, seed=5, names=names)
    config = child(
        get_generator("far-tiny"),
        model={"width": 32, "depth": 1, "heads": 2, "mlp_multiple": 16, "head": "linear", "dropout": 0.0},
        optimizer={"lr": 1e-2, "warmup_steps": 2},
        train={"batch": 56, "steps": 100, "precision": "float32", "device": "cpu", "image_every": 0},
    )
    stores = {"data": str(tmp_path / "store"), "validation": str(tmp_path / "held-out")}
    train_generator(replace(config, **stores), tmp_path / "run")
    settings = LikelihoodEvaluation(
        checkpoint=tmp_path / "run", data=str(tmp_path / "held-out"), zero_shot=True, batch=16
    )
    capsys.readouterr()
    found = evaluate_likelihood(settings, CPU)
    assert "21 images, each under 7 classes: 147 forward passes" in capsys.readouterr().out
    metrics = found.metrics
    assert metrics["bits_per_image"] == pytest.approx(read_stats(tmp_path / "run")[-1]["val_bits_per_image"], rel=1e-5)
    assert metrics["zero_shot_top1"] > 0.9 and metrics["zero_shot_top5"] > 0.95
    assert metrics["zero_shot_top1_chance"] == 1 / 7 and metrics["zero_shot_images"] == 21
    # a code is its class's in half of the cases, and any other: no model of the classes needs fewer bits in the mean
    same = [(1 + 1 / size) / 2 for size in (32, 16)]
    other = [(size - 1) / (2 * size) * math.log2(2 * size) for size in (32, 16)]
    least = 16 * sum(rest - p * math.log2(p) for p, rest in zip(same, other, strict=True))
    assert least - 3 * metrics["bits_per_image_error"] < metrics["bits_per_image"] < 0.92 * 144
    assert "zero-shot class, top 1" in found.table()


@pytest.mark.parametrize("data", ["store", "pictures"])
def test_two_ranks_share_the_work(home: Path, data: str) -> None:
    write_classes(home / "pictures", 7)
    options = ["--data", data, "--zero-shot", "--batch", "2", "--workers", "0"]
    alone = likelihood("generator", *options)
    output = on_two_ranks(["evaluate", "likelihood", "generator", *options, "--device", "cpu", "--out", "both"])
    assert output.count("bits an image") == 1
    both = json.loads(Path("both/eval.json").read_text())
    assert both["metrics"] == pytest.approx(alone["metrics"]) and both["protocol"] == alone["protocol"]
    assert [entry["index"] for entry in both["worst"]] == [entry["index"] for entry in alone["worst"]]
    assert Path("both/images.csv").read_text() == Path("out/images.csv").read_text()


@pytest.mark.parametrize("data", ["store", "pictures"])
def test_on_a_device_without_float64_the_numbers_are_those_of_the_cpu(home: Path, data: str) -> None:
    """The device of tests/metal.py, which refuses to meet tensors of the CPU."""
    write_classes(home / "pictures", 6)
    options = ["--data", data, "--zero-shot", "--workers", "0"]
    alone = likelihood("generator", *options)
    rehearse(f"""
assert cli.main(["evaluate", "likelihood", "generator", *{options}, "--device", "mps", "--out", "there"]) == 0
""")
    there = json.loads(Path("there/eval.json").read_text())
    assert there["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
    assert there["protocol"]["device"] == "metal"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["generator", "--data", "nowhere"], "nowhere"),
        (["generator", "--data", "foreign"], "the codes of token store foreign are of another tokenizer"),
        (["generator", "--data", "larger"], "the generator's token grid is 4x4, that of token store larger is 8x8"),
        (["generator", "--data", "renamed"], "classes that the generator does not know by name: bat, cow"),
        (["nameless", "--data", "numbered"], "token store numbered has 5 classes, and the generator 3"),
        (
            ["generator", "--data", "unlabelled", "--zero-shot"],
            "needs labels to compare with, and token store unlabelled",
        ),
        (
            ["unconditional", "--data", "store", "--zero-shot"],
            "needs classes to choose from, and this generator has none",
        ),
        (["generator/tokenizer", "--data", "store"], "holds a tokenizer, no generator"),
        (["generator", "--data", "store", "--images", "-1"], "--images must be at least 0"),
        (["generator", "--data", "store", "--out", "store/tokenizer"], "is no folder of evaluate likelihood"),
    ],
)
def test_refused_before_anything_is_written(
    options: list[str], message: str, home: Path, tokenizer: FactorizedTokenizer, refused: Refused
) -> None:
    data = options[2]
    if data == "foreign":
        torch.manual_seed(9)
        make_store(home / data, FactorizedTokenizer(tokenizer.config).eval())
    elif data == "larger":
        make_store(home / data, tokenizer, side=32)
    elif data == "renamed":
        make_store(home / data, tokenizer, names=("bat", "cat", "cow"))
    elif data == "numbered":
        make_store(home / data, tokenizer, names=tuple("abcde"))
    elif data == "unlabelled":
        make_store(home / data, tokenizer, names=(), labelled=False)
    if options[0] in ("unconditional", "nameless"):
        classes = 3 if options[0] == "nameless" else 0
        fqgan.save_generator(tiny(codebook_sizes=(32, 16), grid=(4, 4), num_classes=classes), options[0])
    out = [] if "--out" in options else ["--out", "out"]
    before = sorted(home.rglob("*"))
    assert message in refused("evaluate", "likelihood", *options, "--device", "cpu", *out)
    assert sorted(home.rglob("*")) == before


def test_the_result_goes_beside_the_generator_by_default(home: Path) -> None:
    shutil.rmtree("generator/likelihood", ignore_errors=True)
    assert main(["evaluate", "likelihood", "generator", "--data", "store", "--device", "cpu"]) == 0
    names = {path.name for path in Path("generator/likelihood").iterdir()}
    assert names == {"eval.json", "images.csv", "map.png", "worst-and-best.png"}
