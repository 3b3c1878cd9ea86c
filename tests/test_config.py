"""Configs: plain data in both directions, and every contradiction told by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.commands.train_tokenizer import COMMAND, with_num_factors
from fqgan.config import FactorConfig, GeneratorRunConfig, TokenizerConfig, TokenizerRunConfig, presets
from fqgan.config.presets import child
from fqgan.config.ranges import changeable

PAPER = TokenizerRunConfig()


@pytest.mark.parametrize("config", [PAPER, *presets.PRESETS.values()], ids=["default", *presets.PRESETS])
def test_round_trip_through_a_file(config: TokenizerRunConfig, tmp_path: Path) -> None:
    schema.save(config, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == schema.FORMAT_VERSION
    assert schema.load(TokenizerRunConfig, tmp_path / "config.json") == config


def changed(path: str, value: Any) -> dict[str, Any]:
    """The default config as a dict, with the entry at a dotted path set to `value`."""
    data = json.loads(json.dumps(schema.to_dict(PAPER)))
    *parents, last = path.split(".")
    place: Any = data
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimizer.learning_rate", 1e-3, "unknown key 'optimizer.learning_rate'"),
        ("optimizer.schedul", "cosine", "unknown key 'optimizer.schedul'; did you mean 'schedule'?"),
        ("model.factors.1.codebook", 16, "unknown key 'model.factors.1.codebook'; did you mean 'codebook_size'?"),
        ("train.batch", "256", "key train.batch must be int, got '256'"),
        ("train.batch", True, "key train.batch must be int, got True"),
        ("train.batch", 2.5, "key train.batch must be int, got 2.5"),
        ("data.flip", 1, "key data.flip must be bool, got 1"),
        ("data.source", None, "key data.source must be str, got None"),
        ("optimizer.lr", "1e-4", "key optimizer.lr must be float, got '1e-4'"),
        (
            "optimizer.schedule",
            "linear",
            "key optimizer.schedule must be one of constant, cosine, cooldown; got 'linear'",
        ),
        ("model.channel_multipliers", 4, "key model.channel_multipliers must be a list, got 4"),
        ("model.channel_multipliers", [1, "2"], "key model.channel_multipliers.1 must be int, got '2'"),
        ("model.factors", ["visual"], "key model.factors.0 must be an object, got 'visual'"),
        ("model", [], "key model must be an object, got []"),
        ("format_version", 7, f"format_version 7 is not {schema.FORMAT_VERSION}: of another version of fqgan"),
    ],
)
def test_what_does_not_fit_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"here.json: {message}")):
        schema.from_dict(TokenizerRunConfig, changed(path, value), "here.json")


def test_a_file_from_before_a_section_was_added_means_its_defaults() -> None:
    content = schema.to_dict(PAPER)
    del content["quantizer"]
    assert schema.from_dict(TokenizerRunConfig, content) == PAPER


def test_an_integer_may_stand_for_a_float_and_missing_keys_take_the_defaults() -> None:
    config = schema.from_dict(TokenizerRunConfig, {"optimizer": {"clip": 2}})
    assert config == child(PAPER, optimizer={"clip": 2.0})
    assert isinstance(config.optimizer.clip, float)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "no readable JSON file"), ("[]", "holds no JSON object"), ('{"format_version": 2}', "format_version 2")],
)
def test_a_broken_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}.*{message}"):
        schema.load(TokenizerRunConfig, path)


def test_diff_and_flatten_name_every_leaf() -> None:
    assert schema.diff(PAPER, PAPER) == {}
    new = child(PAPER, optimizer={"lr": 1e-3}, model={"channel_multipliers": (1, 2)})
    assert schema.diff(PAPER, new) == {
        "optimizer.lr": (2e-4, 1e-3),
        "model.channel_multipliers": ((1, 1, 2, 2, 4), (1, 2)),
    }
    added = schema.diff(PAPER, with_num_factors(PAPER, "3"))
    assert added["model.factors.2.name"] == (None, "semantic2")
    assert {key.rpartition(".")[0] for key in added} == {"model.factors.2"}
    assert schema.flatten(PAPER)["model.factors.1.teacher"] == "clip:openai/clip-vit-large-patch14"


VISUAL = FactorConfig()


def test_settings_of_version_0_1_that_are_gone_pass_at_their_defaults() -> None:
    """Any other value is told in one line."""
    old = schema.to_dict(TokenizerRunConfig())
    old["loss"] |= {"disentangle_codebooks": False}
    assert schema.from_dict(TokenizerRunConfig, old) == TokenizerRunConfig()
    old["loss"] |= {"disentangle_codebooks": True}
    with pytest.raises(UserError, match=r"^config: disentangle_codebooks True: this setting of version 0.1 is gone$"):
        schema.from_dict(TokenizerRunConfig, old)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"factors": ()}}, "model.factors and model.channel_multipliers need at least one entry each"),
        ({"model": {"channel_multipliers": ()}}, "model.factors and model.channel_multipliers need at least one"),
        ({"model": {"image_size": 250}}, "model.image_size 250 is no multiple of the downsampling factor 16"),
        ({"model": {"image_size": 0}}, "model.image_size must be at least 1, got 0"),
        ({"model": {"image_size": -16}}, "model.image_size must be at least 1, got -16"),
        ({"model": {"stem": 0}}, "model.stem must be at least 1, got 0"),
        ({"model": {"channel_multipliers": (1, 0)}}, "model.channel_multipliers must be at least 1, got 0"),
        ({"model": {"factors": (VISUAL, VISUAL)}}, "factor names must differ, got visual, visual"),
        ({"model": {"channels": 40}}, "model.channels 40 times each multiplier must be a multiple of 32"),
        (
            {"model": {"decoder_channels": 40}},
            "model.decoder_channels 40 times each multiplier must be a multiple of 32",
        ),
        ({"model": {"dropout": 1.0}}, "model.dropout must be at least 0 and below 1, got 1.0"),
        ({"model": {"adapter_head_dim": 100}}, "model.adapter_head_dim 100 does not divide the width 512"),
        ({"model": {"feature_head_width": 100}}, "feature_head_heads 8 does not divide model.feature_head_width 100"),
        (
            {"model": {"factors": (replace(VISUAL, codebook_size=0),)}},
            "model.factors.0.codebook_size must be at least 1, got 0",
        ),
        (
            {"model": {"factors": (replace(VISUAL, adapter_depth=-1),)}},
            "model.factors.0.adapter_depth must be at least 0, got -1",
        ),
        (
            {"model": {"factors": (VISUAL, FactorConfig("b", code_dim=4))}},
            "loss.disentangle_weight needs factors of one code_dim",
        ),
        ({"data": {"crop_min": 0.0}}, "must satisfy 0 < crop_min <= crop_max <= 1"),
        ({"data": {"crop_min": 0.9, "crop_max": 0.8}}, "must satisfy 0 < crop_min <= crop_max <= 1"),
        ({"data": {"workers": -1}}, "data.workers must be at least 0, got -1"),
        ({"loss": {"representation_weight": 0.0}}, "loss.representation_weight 0 would leave a feature head untrained"),
        ({"loss": {"entropy_weight": -0.1}}, "loss.entropy_weight must be at least 0, got -0.1"),
        ({"loss": {"entropy_temperature": 0.0}}, "loss.entropy_temperature must be above 0, got 0.0"),
        ({"discriminator": {"weight": -1.0}}, "discriminator.weight must be at least 0, got -1.0"),
        ({"discriminator": {"norm": "group", "channels": 24}}, "discriminator.channels 24 must be a multiple of 16"),
        ({"discriminator": {"layers": 7}}, "discriminator.layers 7 is too deep for model.image_size 256"),
        ({"discriminator": {"weight": 0.0, "r1_weight": 1.0}}, "discriminator.r1_weight needs a discriminator: set"),
        ({"discriminator": {"weight": 0.0, "adaptive": True}}, "discriminator.adaptive needs a discriminator: set"),
        ({"discriminator": {"r1_every": 0}}, "discriminator.r1_every must be at least 1, got 0"),
        ({"discriminator": {"lecam_decay": 1.0}}, "discriminator.lecam_decay must be at least 0 and below 1, got 1.0"),
        (
            {"discriminator": {"adaptive": True}, "loss": {"reconstruction_weight": 0.0, "perceptual_weight": 0.0}},
            "discriminator.adaptive needs loss.reconstruction_weight or loss.perceptual_weight above 0",
        ),
        ({"discriminator": {"kind": "stylegan", "norm": "group"}}, "discriminator.layers are the PatchGAN's: leave"),
        ({"discriminator": {"kind": "stylegan", "layers": 2}}, "discriminator.layers are the PatchGAN's: leave them"),
        (
            {"discriminator": {"kind": "stylegan"}, "model": {"image_size": 16}},
            "discriminator.kind stylegan needs an image size of at least 32 that is 4, 5, 6 or 7 times a power of two, "
            "got model.image_size 16",
        ),
        (
            {"discriminator": {"kind": "stylegan"}, "model": {"image_size": 272}},
            "times a power of two, got model.image_size 272",
        ),
        ({"quantizer": {"ema_decay": 1.0}}, "quantizer.ema_decay must be at least 0 and below 1, got 1.0"),
        ({"quantizer": {"restart_after": -1}}, "quantizer.restart_after must be at least 0, got -1"),
        ({"quantizer": {"kmeans_iterations": -1}}, "quantizer.kmeans_iterations must be at least 0, got -1"),
        ({"optimizer": {"lr": -1.0}}, "optimizer.lr must be above 0, got -1.0"),
        ({"optimizer": {"lr": 0.0}}, "optimizer.lr must be above 0, got 0.0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr must be above 0, got nan"),
        ({"optimizer": {"beta2": 1.0}}, "optimizer.beta2 must be at least 0 and below 1, got 1.0"),
        ({"train": {"batch": 0}}, "train.batch must be at least 1, got 0"),
        ({"train": {"micro_batch": -1}}, "train.micro_batch must be at least 0, got -1"),
        ({"train": {"keep_last": 0}}, "train.keep_last must be at least 1, got 0"),
        ({"train": {"steps": -5}}, "train.steps must be at least 0, got -5"),
        ({"train": {"epochs": float("inf")}}, "train.epochs must be at least 0, got inf"),
        ({"train": {"steps": 0, "epochs": 0.0}}, "train.steps and train.epochs are both 0"),
    ],
)
def test_every_contradiction_is_told(changes: dict[str, dict[str, Any]], message: str) -> None:
    PAPER.check()
    with pytest.raises(UserError, match=re.escape(message)):
        child(PAPER, **changes).check()


@pytest.mark.parametrize("size", [32, 64, 160, 224, 256, 384, 512])
def test_the_stylegan_discriminator_takes_common_sizes(size: int) -> None:
    child(PAPER, discriminator={"kind": "stylegan"}, model={"image_size": size}).check()


def test_an_architecture_is_checked_without_a_run() -> None:
    with pytest.raises(UserError, match=r"model\.z_channels must be at least 1, got 0"):
        TokenizerConfig(z_channels=0).check()


def test_a_resume_may_change_neither_architecture_nor_order_nor_random_numbers() -> None:
    paper, generator = changeable(PAPER), changeable(GeneratorRunConfig())
    assert {"train.steps", "optimizer.lr", "loss.perceptual", "data.source", "discriminator.weight"} <= paper
    assert {"data", "tokenizer", "train.fsdp", "sampling.top_k"} <= generator
    fixed = {"init", "optimizer.kind", "train.batch", "train.seed", "train.ema_decay", "data.lanes", "data.flip"}
    assert not fixed & (paper | generator)
    assert not {name for name in paper | generator if name.startswith(("model.", "quantizer."))}


def test_what_a_resume_may_change_depends_on_the_discriminator_that_there_is() -> None:
    without = child(PAPER, discriminator={"weight": 0.0})
    assert PAPER.fixed_since(PAPER) == set()
    assert without.fixed_since(PAPER) == PAPER.fixed_since(without) == {"discriminator.weight"}
    assert child(PAPER, discriminator={"lecam_weight": 1.0}).fixed_since(PAPER) == {"discriminator.start"}


@pytest.mark.parametrize(
    ("count", "names"),
    [
        ("1", ["visual"]),
        ("2", ["visual", "semantic"]),
        ("4", ["visual", "semantic", "semantic2", "semantic3"]),
    ],
)
def test_num_factors_drops_the_last_or_repeats_it(count: str, names: list[str]) -> None:
    factors = with_num_factors(PAPER, count).model.factors
    assert [factor.name for factor in factors] == names
    assert all(replace(factor, name="semantic") == PAPER.model.factors[1] for factor in factors[1:])


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5"])
def test_num_factors_must_count(count: str) -> None:
    with pytest.raises(UserError, match=f"--num-factors must be an integer from 1 to 100, got '{count}'"):
        with_num_factors(PAPER, count)


def test_the_options_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    schema.save(child(presets.get("dual-ds8"), optimizer={"lr": 3e-4, "beta1": 0.5}, train={"seed": 7}), file)
    base = ["vqgan-ds16", "--run", str(tmp_path / "run")]
    assert COMMAND.parse(base)[0] == presets.get("vqgan-ds16")
    config, run = COMMAND.parse([*base, f"--config={file}", "--optimizer.lr", "1e-5", "--train.seed", "8"])
    assert run == tmp_path / "run"
    assert (config.optimizer.lr, config.optimizer.beta1, config.train.seed) == (1e-5, 0.5, 8)
    assert config.model == presets.get("dual-ds8").model


def test_num_factors_applies_to_the_file_and_before_the_options(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    schema.save(presets.get("dual-ds8"), file)
    options = ["--config", str(file), "--num-factors", "3", "--model.factors.2.codebook-size", "64"]
    config, _ = COMMAND.parse(["vqgan-ds16", "--run", "x", *options])
    assert [factor.codebook_size for factor in config.model.factors] == [16384, 16384, 64]
