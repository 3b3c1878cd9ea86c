"""The discriminator on a frozen network's features, and DiffAug before any discriminator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from patterns import noise
from runs import contents, lines
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.lab.studies.results import contaminated, may_have_taught
from fqgan.models.find import model_config
from fqgan.nets.teachers import load_backbone, load_teacher
from fqgan.tokenizer import augment
from fqgan.tokenizer.adversary import Adversary
from fqgan.tokenizer.augment import augmented, cut_out, recoloured, translated
from fqgan.tokenizer.frozen import FrozenDiscriminator, VirtualBatchNorm, _Head
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.losses import gan_discriminator_loss
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import train_tokenizer

PACKAGED = "efficientnet-lite0@32"


def judged(tiny: TokenizerRunConfig, **discriminator: object) -> TokenizerRunConfig:
    options = {"kind": "frozen", "backbone": PACKAGED, "channels": 32, "weight": 0.5, "start": 0, **discriminator}
    return child(tiny, discriminator=options)


# --- the heads


def test_a_head_at_each_depth_and_none_of_the_backbone_in_its_state() -> None:
    """At 64 pixels the packaged network has maps of 32, 16, 8, 4 and 2 positions a side; the first one is halved."""
    discriminator = FrozenDiscriminator(load_teacher("efficientnet-lite0@64"), channels=8)
    real, fake = discriminator(noise(3, 3, 64, 64), noise(2, 3, 48, 48))
    assert real.shape == (3, 16**2 + 16**2 + 8**2 + 4**2 + 2**2) and fake.shape == (2, real.shape[1])
    assert {name.partition(".")[0] for name in discriminator.state_dict()} == {"heads"}
    some = FrozenDiscriminator(load_teacher("efficientnet-lite0@64"), (2, 5), channels=8)
    assert some(noise(1, 3, 64, 64))[0].shape == (1, 16**2 + 2**2)
    with pytest.raises(UserError, match=r"discriminator\.depths: efficientnet-lite0@64 has 5, not 6"):
        FrozenDiscriminator(load_teacher("efficientnet-lite0@64"), (6,))


@pytest.mark.parametrize(("count", "depths"), [(12, (3, 5, 8, 10, 12)), (5, (1, 2, 3, 4, 5)), (2, (1, 2))])
def test_depths_are_equally_spaced(count: int, depths: tuple[int, ...]) -> None:
    backbone = nn.Linear(1, 1)
    backbone.maps = lambda images: [images[:, :, :2, :2]] * count  # pyright: ignore
    backbone.size, backbone.name = 4, "made up"  # pyright: ignore
    assert FrozenDiscriminator(backbone, channels=8).depths == depths  # pyright: ignore


def test_every_convolution_of_a_head_has_spectral_norm_one() -> None:
    torch.manual_seed(0)
    head = _Head(5, 40, 16, "batch")
    for _ in range(20):  # each pass is one power iteration
        head(noise(2, 5, 40, 40))
    norms = [
        torch.linalg.matrix_norm(each.weight.flatten(1), 2).item()
        for each in head.modules()
        if isinstance(each, nn.Conv2d)
    ]
    assert norms == pytest.approx([1] * 5, rel=0.02), "two that halve, 1x1, 3x3 and the logits'"


def test_virtual_batches_are_normalised_as_batch_norm_does_in_training() -> None:
    norm = VirtualBatchNorm(3)
    x = noise(12, 3, 4, 5) * 3 + 1
    expected = torch.cat([F.batch_norm(part, None, None, training=True) for part in x.split(6)])
    torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm.eval()(x), norm.train()(x))
    assert torch.isfinite(norm(x[:1, :, :1, :1])).all(), "a single value has no variance"


def test_it_learns_to_tell_images_from_blurred_copies_and_the_gradient_reaches_them() -> None:
    torch.manual_seed(0)
    backbone = load_teacher(PACKAGED)
    discriminator = FrozenDiscriminator(backbone, (1, 2, 3), channels=32)
    before = [parameter.clone() for parameter in backbone.parameters()]

    def pair(seed: int) -> tuple[Tensor, Tensor]:
        sharp = noise(8, 3, 32, 32, seed=seed)
        return sharp, F.interpolate(F.avg_pool2d(sharp, 2), scale_factor=2)

    adam = torch.optim.Adam(discriminator.parameters(), 1e-2)
    for seed in range(35):
        adam.zero_grad()
        real, fake = discriminator(*pair(seed))
        gan_discriminator_loss(real, fake, "hinge").backward()
        adam.step()
    real, fake = discriminator(*pair(1000))
    assert real.mean(1).min() > fake.mean(1).max()
    assert all(map(torch.equal, before, backbone.parameters()))
    images = pair(1001)[1].requires_grad_()
    (up,) = torch.autograd.grad(discriminator(images)[0].mean(), images)
    assert up.abs().sum(1).min() > 0
    assert discriminator(images + up / up.norm())[0].mean() > discriminator(images)[0].mean()


# --- DiffAug


def test_translation_moves_whole_pixels_by_up_to_an_eighth_and_zeros_come_in() -> None:
    torch.manual_seed(0)
    image = noise(1, 2, 16, 24)
    moved = translated(image.expand(400, -1, -1, -1))
    padded = F.pad(image[0], (3, 3, 2, 2))
    expected = [padded[:, y : y + 16, x : x + 24] for y in range(5) for x in range(7)]
    found = [next(i for i, each in enumerate(expected) if torch.equal(each, one)) for one in moved]
    assert set(found) == set(range(35))


def test_cutout_greys_a_square_of_half_the_side_about_a_middle_anywhere() -> None:
    torch.manual_seed(0)
    cut = cut_out(torch.ones(3000, 1, 8, 8))[:, 0] == 0
    rows, columns = cut.any(2), cut.any(1)
    assert torch.equal(cut, rows[:, :, None] & columns[:, None]), "a rectangle"
    middles = {(y, x) for y in range(9) for x in range(9)}
    expected = {
        (tuple(range(max(0, y - 2), min(8, y + 2))), tuple(range(max(0, x - 2), min(8, x + 2)))) for y, x in middles
    }
    found = {
        (tuple(a.nonzero().flatten().tolist()), tuple(b.nonzero().flatten().tolist()))
        for a, b in zip(rows, columns, strict=True)
    }
    assert found == expected


def test_colour_changes_brightness_then_saturation_then_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(2, 3, 4, 4)
    drawn = torch.tensor([[0.9, 0.5], [0.25, 1.0], [0.0, 0.75]])[:, :, None, None, None]
    monkeypatch.setattr(augment.torch, "rand", lambda *shape, **where: drawn)
    found = recoloured(images)
    monkeypatch.undo()
    brighter = images + torch.tensor([0.4, 0.0])[:, None, None, None]
    grey = brighter.mean(1, keepdim=True)
    coloured = torch.stack([0.5 * brighter[0] + 0.5 * grey[0], 2 * brighter[1] - grey[1]])
    mean = coloured.mean((1, 2, 3), keepdim=True)
    contrast = torch.tensor([0.5, 1.25])[:, None, None, None]
    torch.testing.assert_close(found, contrast * coloured + (1 - contrast) * mean)


def test_nothing_changes_without_augmentation_and_gradients_pass_all_of_it() -> None:
    images = noise(4, 3, 8, 8).requires_grad_()
    state = torch.get_rng_state()
    assert augmented(images, ()) is images and torch.equal(torch.get_rng_state(), state)
    changed = augmented(images, ("cutout", "translation", "colour"))
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert ((gradient != 0).float().mean() > 0.3) and torch.isfinite(gradient).all()
    torch.manual_seed(3)
    first = augmented(images, ("translation", "cutout"))
    torch.manual_seed(3)
    torch.testing.assert_close(first, cut_out(translated(images))), "the order is the paper's"  # pyright: ignore


def test_both_players_see_changed_images(tiny: TokenizerRunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """R1's gradient passes through the change to the images themselves."""
    config = child(tiny, discriminator={"augment": ("colour",), "channels": 32, "layers": 2, "weight": 1.0})
    adversary = Adversary(config.discriminator, 32)
    monkeypatch.setattr("fqgan.tokenizer.adversary.augmented", lambda images, kinds: images * 0)
    (black,) = adversary.discriminator(torch.zeros(2, 3, 32, 32))
    loss, _ = adversary.generator_term(noise(2, 3, 32, 32), 0)(torch.zeros(()))
    assert loss.item() == pytest.approx(-black.mean().item(), abs=1e-6)
    assert not adversary._r1(noise(2, 3, 32, 32)).any()


# --- training


@pytest.mark.slow
def test_training_resumes_to_the_bit_and_keeps_the_backbones_name_alone(
    tiny: TokenizerRunConfig, tmp_path: Path
) -> None:
    options = {"augment": ("colour", "translation", "cutout"), "adaptive": True, "lecam_weight": 0.1}
    config = child(judged(tiny, **options), train={"steps": 3, "precision": "bf16", "checkpoint_every": 9})
    train_tokenizer(config, tmp_path / "straight")
    train_tokenizer(child(config, train={"steps": 1}), tmp_path / "resumed")
    train_tokenizer(config, tmp_path / "resumed")
    straight, resumed = (contents(tmp_path / run, 3) for run in ("straight", "resumed"))
    assert straight.keys() == resumed.keys() and all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert all("heads" in name or "logit_means" in name for name in straight if name.startswith("discriminator/"))
    assert lines(tmp_path / "straight")[-1]["gan_loss"] == lines(tmp_path / "resumed")[-1]["gan_loss"]
    assert load_tokenizer(tmp_path / "straight").config.critic == PACKAGED  # pyright: ignore


def test_the_network_that_judges_may_teach_too_and_is_loaded_once() -> None:
    teachers = {PACKAGED: load_teacher(PACKAGED)}
    assert load_backbone(PACKAGED, teachers) is teachers and load_backbone("", teachers) is teachers
    with pytest.raises(UserError, match=r"unknown teacher 'dino'.*; judge offline with --discriminator\.backbone"):
        load_backbone("dino", teachers)


def test_a_study_marks_the_network_that_judged(tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    config = judged(tiny, backbone="dinov2:somewhere@28")
    job = SimpleNamespace(config=config)
    assert contaminated("dinov2:/elsewhere", [job])  # pyright: ignore
    assert not contaminated("clip:/elsewhere", [job])  # pyright: ignore
    unused = SimpleNamespace(config=child(config, discriminator={"weight": 0.0}))
    assert not contaminated("dinov2:/elsewhere", [unused])  # pyright: ignore
    FactorizedTokenizer(replace(config.model, critic=config.discriminator.network)).export(tmp_path / "export")
    layout = model_config(tmp_path / "export", "tokenizer")
    assert may_have_taught("dinov2:/elsewhere", [layout]) and not may_have_taught("clip:/elsewhere", [layout])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": ""}, "discriminator.kind frozen needs a discriminator.backbone, such as efficientnet-lite0"),
        ({"r1_weight": 1.0}, "discriminator.r1_weight is not for discriminator.kind frozen"),
        ({"layers": 2}, "discriminator.layers are the PatchGAN's: discriminator.depths chooses those of a backbone"),
        ({"norm": "group", "channels": 48}, "discriminator.channels 48 must be a multiple of 32 with group norm"),
        ({"depths": (0,)}, "discriminator.depths must be at least 1, got 0"),
        ({"kind": "patchgan"}, "discriminator.backbone needs discriminator.kind frozen, not patchgan"),
        ({"kind": "stylegan", "backbone": "", "depths": (2,)}, "discriminator.depths needs discriminator.kind frozen"),
        ({"weight": 0.0, "augment": ("cutout",)}, "discriminator.augment needs a discriminator: set"),
    ],
)
def test_what_contradicts_itself_is_refused(tiny: TokenizerRunConfig, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        judged(tiny, **options).check()
    assert message in str(refusal.value)
