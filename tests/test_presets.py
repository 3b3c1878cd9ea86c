"""Presets: all build and parse, and those of the paper are the paper's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fqgan.base.errors import UserError
from fqgan.commands.train_tokenizer import COMMAND
from fqgan.config.presets import GENERATOR_PRESETS, PRESETS, child, get, get_generator
from fqgan.engine.sizes import num_parameters
from fqgan.generator.model import FAR
from fqgan.tokenizer.model import FactorizedTokenizer

PAPER = [name for name in PRESETS if re.match(r"(dual|triple|vqgan)-ds\d", name)]
PARAMETERS = {
    "dual-ds16": 150_410_131,
    "dual-ds8": 150_209_427,
    "triple-ds16": 159_295_515,
    "triple-ds8": 159_586_331,
    "vqgan-ds16": 71_883_403,
    "vqgan-ds16-32k": 71_883_403 + 16_384 * 8,
    "vqgan-ds8": 70_109_835,
}


def build(name: str) -> FactorizedTokenizer:
    with torch.device("meta"):
        return FactorizedTokenizer(get(name).model)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_parses_through_the_command_line_and_builds(name: str) -> None:
    config, run = COMMAND.parse([name, "--run", "x", "--data.source", "photos"])
    assert run == Path("x")
    assert config == child(get(name), data={"source": "photos"})
    assert build(name).num_factors == len(config.model.factors)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_their_size_and_shape(name: str) -> None:
    model, config = build(name), get(name).model
    assert num_parameters(model) == PARAMETERS[name]
    assert config.image_size == 256
    assert config.downsampling == (8 if "ds8" in name else 16)
    assert len(config.factors) == {"vqgan": 1, "dual": 2, "triple": 3}[name.split("-")[0]]
    assert {factor.codebook_size for factor in config.factors} == {32768 if "32k" in name else 16384}
    assert {factor.code_dim for factor in config.factors} == {8}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipe_is_pinned(name: str) -> None:
    """Section 4.1 of the paper; changing it in one preset would go unnoticed."""
    config = get(name)
    train, optimizer, loss, gan, data = config.train, config.optimizer, config.loss, config.discriminator, config.data
    assert (train.batch, train.epochs, train.steps) == (256, 40, 0)
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2) == (2e-4, 0.9, 0.95)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("constant", 0)
    assert (loss.disentangle_weight, loss.representation_weight) == (0.1, 0.5), "lambda_1, lambda_2 of Eq. 8"
    assert (loss.reconstruction, loss.perceptual) == ("l2", "lpips-vgg")
    assert (loss.reconstruction_weight, loss.perceptual_weight) == (1, 1)
    assert (loss.codebook_weight, loss.commitment_weight, loss.entropy_weight) == (1, 0.25, 0.03)
    assert (gan.start, gan.weight) == (20_000, 0.5)
    assert (data.crop_min, data.crop_max, data.flip) == (0.8, 1.0, True)


def test_the_factors_and_teachers_of_the_paper() -> None:
    """CLIP for the semantic factor of two; DINOv2 and CLIP for the middle and high ones of three."""
    teachers = {name: [factor.teacher for factor in get(name).model.factors] for name in PAPER}
    clip_large, clip_base = "clip:openai/clip-vit-large-patch14", "clip:openai/clip-vit-base-patch16"
    assert teachers["dual-ds16"] == teachers["dual-ds8"] == ["", clip_large]
    assert teachers["triple-ds16"] == teachers["triple-ds8"] == ["", "dinov2:facebook/dinov2-small", clip_base]
    assert all(teachers[name] == [""] for name in PAPER if name.startswith("vqgan"))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("cifar10-")])
def test_the_recipes_of_published_numbers_are_pinned(name: str) -> None:
    """The tables of CIFAR-10 in docs/results.md are of these settings, whatever the photographs' presets learn."""
    config = get(name)
    optimizer, loss, data = config.optimizer, config.loss, config.data
    assert (optimizer.kind, optimizer.lr, optimizer.schedule, optimizer.warmup_steps) == ("muon", 3e-3, "cosine", 50)
    assert (loss.perceptual_weight, loss.entropy_weight) == (0.3, 0.003)
    assert (loss.disentangle_weight, loss.representation_weight) == (0.02, 0.02)
    assert (data.crop_min, data.flip, data.turn, data.jitter) == (1.0, True, False, 0.0)
    assert (config.train.epochs, config.train.steps) == (20, 0)
    assert config.train.batch == (32 if name.endswith("-next") else 64)


def test_the_offline_triple_has_the_papers_levels() -> None:
    """Differs from photos-dual by a middle factor alone, with another teacher; nothing in it needs a download."""
    dual, triple = get("photos-dual"), get("photos-triple")
    visual, mid, semantic = triple.model.factors
    assert (visual, semantic) == dual.model.factors
    assert (mid.name, mid.teacher) == ("mid", "efficientnet-lite0:stage3@64")
    assert child(triple, model={"factors": dual.model.factors}) == dual
    assert triple.loss.perceptual == "efficientnet-lite0" and triple.data.source == "photos"


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'dual-ds15'; did you mean 'dual-ds16'\?"):
        get("dual-ds15")


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("name", GENERATOR_PRESETS)
def test_a_generator_preset_builds_for_any_number_of_factors(name: str, k: int) -> None:
    config = get_generator(name).model.resolved((64,) * k, (4, 8), 10, (4,) * k)
    with torch.device("meta"):
        assert FAR(config).config.num_factors == k


@pytest.mark.parametrize(
    ("name", "k", "parameters"),
    [
        ("far-base", 2, 417_104_896),
        ("far-base", 3, 451_707_904),
        ("far-large", 2, 901_195_520),
        ("far-large", 3, 944_776_960),
    ],
)
def test_the_papers_generators_have_their_size(name: str, k: int, parameters: int) -> None:
    with torch.device("meta"):
        assert num_parameters(FAR(get_generator(name).model.resolved((16384,) * k, (16, 16), 1000))) == parameters


def test_the_papers_generator_recipe_is_pinned() -> None:
    """Section 4.1 and appendix E of the paper."""
    for name in ("far-base", "far-large"):
        config = get_generator(name)
        assert (config.train.batch, config.train.epochs, config.train.precision) == (256, 300, "bf16")
        optimizer = config.optimizer
        assert (optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (2e-4, 0.9, 0.95, 0.05)
        assert (optimizer.schedule, optimizer.clip) == ("constant", 1.0)
        assert (config.model.dropout, config.model.class_dropout, config.model.head) == (0.1, 0.1, "ar")
