"""`fqgan evaluate codes`: what codes tell of each other, and pictures whose codes are partly wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import on_two_ranks
from sets import write_pictures

from fqgan.cli import main
from fqgan.config import FactorConfig, TokenizerConfig
from fqgan.config.evaluation import CodesEvaluation
from fqgan.data.loader import load_images
from fqgan.evaluation.robustness import any_other, near_other
from fqgan.generator.draw import uniforms
from fqgan.metrics.information import code_statistics
from fqgan.metrics.psnr import psnr
from fqgan.tokenizer.load import save_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]
FAST = (
    "--features",
    "efficientnet-lite0:stage3@32",
    "--perceptual",
    "none",
    "--workers",
    "0",
    "--shares",
    "0.1",
    "0.5",
)


@pytest.fixture
def tokenizer(here: Path) -> FactorizedTokenizer:
    torch.manual_seed(0)
    factors = (
        FactorConfig("a", 16, 4, 0),
        FactorConfig("b", code_dim=4, adapter_depth=0, quantizer="fsq", levels=(3, 2)),
    )
    config = TokenizerConfig(image_size=16, channels=32, channel_multipliers=(1, 1, 1), res_blocks=1, factors=factors)
    model = FactorizedTokenizer(config).eval()
    save_tokenizer(model, here / "tok")
    write_pictures(here / "data", 9, 0, size=16)
    return model


def measured(*options: object, checkpoint: str = "tok") -> dict[str, Any]:
    arguments = ["evaluate", "codes", checkpoint, "--data", "data", *FAST, *options, "--out", "out.json"]
    assert main([str(each) for each in arguments]) == 0
    return json.loads(Path("out.json").read_text())


def test_replaced_codes_are_others_of_the_codebook_evenly_drawn() -> None:
    sizes = (5, 1, 2)
    codes = torch.stack([torch.randint(size, (4, 50, 50), generator=torch.manual_seed(0)) for size in sizes], 1)
    by = torch.rand(codes.shape, generator=torch.manual_seed(1))
    by[0, :, 0, 0], by[0, :, 0, 1] = 0, 1 - 2**-24  # the ends of what is drawn
    found = any_other(codes, by, sizes)
    assert (found[:, 0] != codes[:, 0]).all() and found[:, 0].min() == 0 and found[:, 0].max() == 4
    assert (found[:, 1] == 0).all()
    assert torch.equal(found[:, 2], 1 - codes[:, 2])
    steps = (found[:, 0] - codes[:, 0]) % 5
    counts = steps.flatten().bincount(minlength=5)[1:].double()
    assert ((counts / 10_000 - 1 / 4).abs() < 0.02).all()


def test_near_codes_are_near_and_an_images_own(tokenizer: FactorizedTokenizer) -> None:
    settings = CodesEvaluation(checkpoint=Path("tok"), data="data", near=3)
    codes = tokenizer.encode(load_images(sorted(Path("data").rglob("*.png")), 16))
    indices = torch.arange(len(codes))
    state = torch.get_rng_state()
    near = near_other(tokenizer, codes, indices, settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(near[3:5], near_other(tokenizer, codes[3:5], indices[3:5], settings))
    assert (near != codes).all()
    table = tokenizer.quantizers[0].embed(torch.arange(16)[None, None]).flatten(2)[0].T  # pyright: ignore
    distances = torch.cdist(table, table).fill_diagonal_(torch.inf)
    closest = distances.topk(3, largest=False).indices
    for own, other in zip(codes[:, 0].flatten(), near[:, 0].flatten(), strict=True):
        assert other in closest[own]


def test_the_numbers_are_those_of_replaced_codes(tokenizer: FactorizedTokenizer) -> None:
    result = measured()
    paths = sorted(Path("data").rglob("*.png"))
    images = load_images(paths, 16)
    codes = tokenizer.encode(images)
    own = code_statistics(codes, (16, 6))
    metrics = result["metrics"]
    expected = [own.entropy, own.left, own.upper, own.other]
    assert [metrics[name] for name in ("entropy", "left", "upper", "other")] == pytest.approx(expected)
    assert metrics["usage"] == pytest.approx(own.usage)
    numbers = torch.stack([uniforms(0, i, 16, 4) for i in range(9)]).transpose(1, 2).unflatten(2, (4, 4))
    which, by = numbers.chunk(2, 1)
    near = near_other(tokenizer, codes, torch.arange(9), CodesEvaluation(checkpoint=Path("tok"), data="data"))
    for kind, others in (("any", any_other(codes, by, (16, 6))), ("near", near)):
        for share in (0.1, 0.5):
            made = tokenizer.decode(torch.where(which < share, others, codes))
            expected = psnr(images, made.clamp(-1, 1)).mean().item()
            assert metrics[f"psnr {kind} {share:g}"] == pytest.approx(expected, abs=1e-4)
            assert metrics[f"frechet {kind} {share:g}"] > 0
    assert metrics["psnr"] == pytest.approx(psnr(images, tokenizer.decode(codes).clamp(-1, 1)).mean().item(), abs=1e-4)
    assert [(each["codes"], each["share"]) for each in result["robustness"]] == [
        ("none", 0), ("any", 0.1), ("any", 0.5), ("near", 0.1), ("near", 0.5)
    ]  # fmt: skip
    assert "positions are few" in result["warnings"][0] if result["warnings"] else 9 * 16 >= 10 * 16


def test_numbers_depend_on_no_batch_and_no_rank(tokenizer: FactorizedTokenizer) -> None:
    expected = measured("--batch", 32)["metrics"]
    assert measured("--batch", 2)["metrics"] == pytest.approx(expected, rel=1e-4)
    assert measured("--seed", 1)["metrics"]["psnr any 0.5"] != pytest.approx(expected["psnr any 0.5"], rel=1e-5)


def test_two_ranks_measure_what_one_does(tokenizer: FactorizedTokenizer) -> None:
    expected = measured()["metrics"]
    on_two_ranks(["evaluate", "codes", "tok", "--data", "data", *FAST, "--device", "cpu", "--out", "two.json"])
    assert json.loads(Path("two.json").read_text())["metrics"] == pytest.approx(expected, rel=1e-3)


def test_a_tokenizer_of_others_has_no_near_codes_and_one_of_latents_is_refused(here: Path, refused: Refused) -> None:
    (here / "toy.py").write_text(
        "import torch, torch.nn.functional as F\n"
        "class Grey:\n"
        "    codebook_sizes, image_size = 8, 16\n"
        "    def encode(self, images): return ((F.avg_pool2d(images.mean(1), 4) + 1) * 4).long().clamp(0, 7)\n"
        "    def decode(self, codes): return F.interpolate((codes + 0.5) / 4 - 1, scale_factor=4.0)"
        ".expand(-1, 3, -1, -1)\n"
        "class Means:\n"
        "    downsampling, image_size = 4, 16\n"
        "    def encode(self, images): return F.avg_pool2d(images, 4)\n"
        "    def decode(self, latents): return F.interpolate(latents, scale_factor=4.0)\n"
    )
    sys.modules.pop("toy", None)
    write_pictures(here / "data", 6, 0, size=16)
    result = measured(checkpoint="py:toy.py:Grey")
    assert {each["codes"] for each in result["robustness"]} == {"none", "any"}
    assert result["metrics"]["psnr"] > result["metrics"]["psnr any 0.1"] > result["metrics"]["psnr any 0.5"]
    told = refused("evaluate", "codes", "py:toy.py:Means", "--data", "data", *FAST, "--out", "b.json")
    assert "codes" in told and not Path("b.json").exists()


def test_what_makes_no_sense_is_refused(tokenizer: FactorizedTokenizer, refused: Refused) -> None:
    base = ("evaluate", "codes", "tok", "--data", "data", "--out", "b.json")
    assert "--shares must be above 0 and at most 1" in refused(*base, "--shares", "0", "0.5")
    assert "--shares must be above 0 and at most 1" in refused(*base, "--shares", "1.5")
    assert "near" in refused(*base, "--near", "0")
    assert not Path("b.json").exists()
