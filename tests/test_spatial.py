"""Alignment of a factor with a teacher's feature map, position by position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from patterns import noise
from PIL import Image

import fqgan
from fqgan.base.errors import UserError
from fqgan.config import TEACHER_DIMS, FactorConfig, LossConfig, TokenizerConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.engine.run import read_stats
from fqgan.nets.efficientnet import load_efficientnet_lite0
from fqgan.nets.teachers import load_teacher
from fqgan.tokenizer.losses import spatial_loss, tokenizer_loss
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.start import Start
from fqgan.tokenizer.task import train_tokenizer

STAGE = "efficientnet-lite0:stage3@32"


def test_spatial_loss_is_one_minus_the_cosine_of_each_position() -> None:
    a, b = noise(2, 5, 3, 4), noise(2, 5, 3, 4).flip(0)
    cosines = [
        float(x @ y / (x.norm() * y.norm()))
        for x, y in zip(a.movedim(1, -1).reshape(-1, 5), b.movedim(1, -1).reshape(-1, 5), strict=True)
    ]
    assert spatial_loss(a, b).item() == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert spatial_loss(a, 3 * a).item() == pytest.approx(0, abs=1e-5)
    assert spatial_loss(a, -a).item() == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("size", [(14, 10), (3, 2)])
def test_a_map_of_another_size_is_resized_as_pil_does(size: tuple[int, int]) -> None:
    maps = noise(1, 6, *size)
    resized = [np.array(Image.fromarray(each.numpy()).resize((5, 7), Image.Resampling.BILINEAR)) for each in maps[0]]
    expected = torch.from_numpy(np.stack(resized))
    assert spatial_loss(expected[None], maps).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["efficientnet-lite0@64", "efficientnet-lite0:stage4@64"])
def test_the_packaged_teachers_feature_is_the_average_of_its_map(name: str) -> None:
    teacher, images = load_teacher(name), noise(2, 3, 64, 64)
    side = 4 if "stage4" in name else 2
    found = teacher.map(images.requires_grad_())
    assert found.shape == (2, teacher.dim, side, side) and not found.requires_grad
    torch.testing.assert_close(found.mean((2, 3)), teacher(images), rtol=1e-4, atol=1e-5)


def taught(tiny: TokenizerRunConfig) -> TokenizerRunConfig:
    """The first factor predicts a map, the second one both kinds of teachers."""
    visual, semantic = tiny.model.factors
    semantic = replace(semantic, teacher="efficientnet-lite0@32", spatial_teacher="efficientnet-lite0@32")
    return child(
        tiny,
        model={
            "factors": (replace(visual, spatial_teacher=STAGE), semantic),
            "feature_head_width": 32,
            "feature_head_depth": 1,
        },
        train={"steps": 3, "checkpoint_every": 3},
    )


def test_training_aligns_and_the_model_loads_without_its_teachers(
    tiny: TokenizerRunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    network = load_efficientnet_lite0().network
    whole = network.forward_intermediates
    monkeypatch.setattr(network, "forward_intermediates", lambda *a, **k: passes.append(1) or whole(*a, **k))
    config = taught(tiny)
    train_tokenizer(config, tmp_path / "run")
    assert len(passes) == 3, "one pass a step for both maps and the feature"
    assert all(
        0 <= line["spatial_loss"] <= 4 and "representation_loss" in line for line in read_stats(tmp_path / "run")
    )
    model = fqgan.load_tokenizer(tmp_path / "run")
    assert [factor.spatial_teacher_dim for factor in model.config.factors] == [TEACHER_DIMS[STAGE[:-3]], 1280]

    start = Start.of(str(tmp_path / "run"), tiny.model)
    assert [each.partition(" head")[0] for each in start.summary.split("; ")[1:]] == [
        "no spatial",
        "no feature-prediction",
        "no spatial",
    ]
    plain = FactorizedTokenizer(tiny.model)
    start.start(plain)
    assert plain.fingerprint() == model.fingerprint(), "heads do not count"


def test_the_loss_sums_over_factors_and_reaches_the_encoder(tiny: TokenizerRunConfig) -> None:
    torch.manual_seed(0)
    factors = tuple(replace(each, spatial_teacher=STAGE) for each in tiny.model.factors)
    model = FactorizedTokenizer(replace(tiny.model, factors=factors, feature_head_width=16))
    images, maps = noise(2, 3, 32, 32), noise(2, 40, 4, 4)
    output = model(images)
    assert [None if each is None else tuple(each.shape) for each in output.maps] == [(2, 40, 8, 8)] * 2
    others = ("reconstruction", "codebook", "commitment", "entropy", "disentangle")
    off = replace(LossConfig(spatial_weight=2.0), **{f"{name}_weight": 0.0 for name in others})
    total, terms = tokenizer_loss(output, images, off, maps=[maps, maps])
    each = [spatial_loss(found, maps).item() for found in output.maps if found is not None]
    assert terms["spatial_loss"].item() == pytest.approx(sum(each)) and total.item() == pytest.approx(2 * sum(each))
    total.backward()
    gradient = model.encoder.conv_in.weight.grad
    assert gradient is not None and gradient.any()
    assert "spatial_loss" not in tokenizer_loss(model(images), images, LossConfig())[1]


def test_what_cannot_be_aligned_is_refused(tiny: TokenizerRunConfig) -> None:
    config = taught(tiny)
    with pytest.raises(UserError, match=r"loss\.spatial_weight 0 would leave a spatial head untrained"):
        child(config, loss={"spatial_weight": 0.0}).check()
    same = FactorConfig("a", 16, 4, 1, quantizer="vq-euclidean")
    factors = (same, replace(same, name="b", spatial_teacher=STAGE))
    with pytest.raises(UserError, match="factor b holds what the ones before it left, which predicts no teacher"):
        replace(config.model, factors=factors, composition="residual").check()
    with pytest.raises(UserError, match="teacher 'clip:/mine' is not known: set spatial_teacher_dim"):
        FactorizedTokenizer(TokenizerConfig(factors=(FactorConfig(spatial_teacher="clip:/mine"),)))
