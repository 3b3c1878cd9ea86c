"""Perceptual distances and teachers made of their shapes alone, as real tensors, as fake ones and on `meta`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fqgan.base.errors import UserError
from fqgan.config import presets
from fqgan.nets.architectures import blank_networks, blank_perceptual, blank_teacher
from fqgan.nets.efficientnet import load_efficientnet_lite0

pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

CUDA = torch.device("cuda")
# dimensions and parameters of the networks without projections and classifiers
PARAMETERS = {
    "clip:openai/clip-vit-base-patch32": (768, 87_456_000),
    "clip:openai/clip-vit-base-patch16": (768, 85_799_424),
    "clip:openai/clip-vit-large-patch14": (1024, 303_179_776),
    "clip:openai/clip-vit-large-patch14-336": (1024, 303_507_456),
    "dinov2:facebook/dinov2-small": (384, 22_056_576),
    "dinov2:facebook/dinov2-base": (768, 86_580_480),
    "dinov2:facebook/dinov2-large": (1024, 304_368_640),
    "dinov2:facebook/dinov2-giant": (1536, 1_136_480_768),
    "timm:resnet18": (512, 11_176_512),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_blank_teacher_is_as_large_as_the_real_one(name: str) -> None:
    with torch.device("meta"):
        teacher = blank_teacher(name)
    assert (teacher.dim, count(teacher)) == PARAMETERS[name]
    assert {parameter.device.type for parameter in teacher.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["dual-ds16", "triple-ds16", "photos-triple"])
def test_the_networks_of_a_preset_run_as_fake_tensors(name: str) -> None:
    config = presets.get(name)
    with FakeTensorMode(), CUDA:
        perceptual, teachers = blank_networks(config, CUDA)
        images = torch.zeros(2, 3, config.model.image_size, config.model.image_size)
        assert perceptual is not None and perceptual(images, images).shape == (2,)
        for factor in config.model.factors:
            if factor.teacher:
                feature = teachers[factor.teacher](images)
                assert feature.device.type == "cuda" and feature.dtype == torch.float32
                assert feature.shape == (2, teachers[factor.teacher].dim)
    assert not isinstance(next(load_efficientnet_lite0().parameters()), torch._subclasses.FakeTensor)


def test_all_users_of_the_packaged_network_share_one() -> None:
    with torch.device("meta"):
        perceptual, teachers = blank_networks(presets.get("photos-triple"))
    assert len({id(each.network) for each in (perceptual, *teachers.values())}) == 1  # pyright: ignore


def test_teachers_of_timm_that_look_at_values_are_made_as_fake_tensors_too() -> None:
    with FakeTensorMode(), CUDA:
        teacher = blank_teacher("timm:vit_tiny_patch16_224@64", "bf16", CUDA)
        assert teacher(torch.zeros(2, 3, 64, 64)).shape == (2, 192)
        assert next(teacher.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["efficientnet-lite0:stage3@32", "timm:resnet18@32", "clip:FOLDER@32"])
@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode])
def test_making_one_leaves_the_random_state_alone(
    name: str, mode: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "clip", "vision_config": {**shape, "image_size": 32, "patch_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = torch.get_rng_state()
    with mode():
        teacher = blank_teacher(name.replace("FOLDER", str(tmp_path)))
        feature = teacher(torch.zeros(1, 3, 32, 32))
        assert feature.shape == (1, teacher.dim)
    if mode is nullcontext:
        assert feature.isfinite().all()
    assert torch.equal(torch.get_rng_state(), before)


def test_distances_are_zero_between_equal_images_alone() -> None:
    a, b = torch.rand(2, 1, 3, 32, 32)
    for name in ("lpips-vgg", "efficientnet-lite0"):
        distance = blank_perceptual(name)
        assert distance is not None and distance(a, a) == 0 and distance(a, b) > 0
    assert blank_perceptual("none") is None


def test_of_an_unknown_network_it_says_which_are_known() -> None:
    with pytest.raises(UserError, match=r"'clip:somebody/clip': .*openai/clip-vit-large-patch14, .* and folders"):
        blank_teacher("clip:somebody/clip")
    with pytest.raises(UserError, match=r"unknown perceptual distance 'lpips'.*known: lpips-vgg"):
        blank_perceptual("lpips")
