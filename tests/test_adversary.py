"""The GAN's variants: adaptive weight, warm-up, LeCam and R1, each against its formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fqgan.config import DiscriminatorConfig
from fqgan.tokenizer.adversary import Adversary, build_discriminator
from fqgan.tokenizer.discriminator import PatchGAN, StyleGANDiscriminator
from fqgan.tokenizer.losses import (
    adaptive_weight,
    gan_discriminator_loss,
    gan_generator_loss,
    lecam_loss,
    r1_loss,
)

BASE = DiscriminatorConfig(start=10, channels=32, layers=2, norm="group")


def images(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def adversary(**changes: object) -> Adversary:
    torch.manual_seed(0)
    return Adversary(replace(BASE, **changes), 32)  # pyright: ignore[reportArgumentType]


def losses(subject: Adversary, step: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    batch = images(seed=seed)
    real, fake = subject.discriminator(batch, images(seed=seed + 1))
    return subject.discriminator_loss(real, fake, batch, step)


def test_the_discriminator_of_a_config() -> None:
    assert isinstance(build_discriminator(DiscriminatorConfig(), 256), PatchGAN)
    assert isinstance(build_discriminator(DiscriminatorConfig(kind="stylegan", channels=4), 64), StyleGANDiscriminator)


def test_adaptive_weight_in_closed_form() -> None:
    """mean |r| has the gradient 1/N a value, c * mean r has c/N: the ratio is 1 / (c + 1e-4) at any size."""
    for count in (1, 3):
        reconstruction = images(count).requires_grad_()
        for c in (0.5, 7.0):
            weight = adaptive_weight(reconstruction.abs().mean(), c * reconstruction.mean(), reconstruction)
            assert weight.item() == pytest.approx(1 / (c + 1e-4), rel=1e-5)
        none = adaptive_weight(50 * reconstruction.abs().mean(), 0 * reconstruction.mean(), reconstruction)
        assert none.item() == 1e4 and not none.requires_grad


def test_adaptive_weight_and_its_gradient_against_plain_autograd() -> None:
    """What the decoder gets: the image losses' gradient plus weight * warm-up * lambda times the GAN's."""
    subject = adversary(adaptive=True, warmup_steps=4, weight=0.8, loss="non-saturating")
    decoder, target = nn.Conv2d(3, 3, 3, padding=1), images()
    latents = images(seed=5)

    def gradients(loss: Tensor, at: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(loss, at, retain_graph=True))

    reconstruction = decoder(latents)
    image_loss = 2 * (reconstruction - target).square().mean()
    gan_loss, weight = subject.generator_term(reconstruction, 11)(image_loss)
    plain = -nn.functional.logsigmoid(subject.discriminator(reconstruction)[0]).mean()
    torch.testing.assert_close(gan_loss, plain)
    (at_image,), (at_gan,) = gradients(image_loss, [reconstruction]), gradients(plain, [reconstruction])
    size = reconstruction.numel()
    expected = (at_image * size).square().mean().sqrt() / ((at_gan * size).square().mean().sqrt() + 1e-4)
    torch.testing.assert_close(weight, 0.8 / 4 * expected)
    assert expected > 1.01 or expected < 0.99

    parameters = list(decoder.parameters())
    got = gradients(image_loss + weight * gan_loss, parameters)
    for one, a, b in zip(got, gradients(image_loss, parameters), gradients(plain, parameters), strict=True):
        torch.testing.assert_close(one, a + 0.2 * expected * b)
    assert all(parameter.grad is None for parameter in subject.discriminator.parameters())


def test_warm_up_rises_from_the_start() -> None:
    subject = adversary(warmup_steps=4, weight=0.8)
    assert [subject.weight(step) for step in (10, 11, 13, 14, 500)] == pytest.approx([0, 0.2, 0.6, 0.8, 0.8])
    assert adversary(weight=0.8).weight(10) == 0.8


@pytest.mark.parametrize("kind", ["hinge", "vanilla", "non-saturating"])
def test_each_kind_reaches_both_players(kind: str) -> None:
    subject = adversary(loss=kind)
    real, fake = subject.discriminator(images(), images(seed=1))
    total, terms = losses(subject, 10)
    assert total.item() == terms["discriminator_loss"].item() == gan_discriminator_loss(real, fake, kind).item()
    assert terms["real_accuracy"].item() == pytest.approx((real > 0).double().mean().item())
    assert terms["fake_accuracy"].item() == pytest.approx((fake < 0).double().mean().item())
    loss, weight = subject.generator_term(images(seed=1), 10)(torch.zeros(()))
    assert loss.item() == gan_generator_loss(fake, kind).item() and weight.item() == 0.5


def test_lecam_in_closed_form() -> None:
    real, fake = torch.tensor([[1.0], [3.0]]), torch.tensor([[-1.0], [0.0]])
    # (1 - 0.5)^2 and (3 - 0.5)^2; (-1 - 2)^2 and (0 - 2)^2
    assert lecam_loss(real, fake, torch.tensor(2.0), torch.tensor(0.5)).item() == pytest.approx(6.5 / 2 + 13 / 2)


def test_lecam_averages_follow_the_steps() -> None:
    """Over the micro-batches of a step; the penalty sees the averages from before it, the first step none."""
    subject = adversary(lecam_weight=0.3, lecam_decay=0.15)
    assert torch.equal(subject.discriminator.get_buffer("logit_means"), torch.zeros(2))
    average = torch.zeros(2)
    for step, decay in ((10, 0.0), (11, 0.1), (12, 0.15), (13, 0.15)):
        micro = []
        for seed in (2 * step, 2 * step + 100):
            total, terms = losses(subject, step, seed)
            micro.append(torch.stack([terms["real_logits"], terms["fake_logits"]]))
            assert ("lecam_loss" in terms) == (step > 10)
            if step > 10:
                real, fake = subject.discriminator(images(seed=seed), images(seed=seed + 1))
                expected = (real - average[1]).square().mean() + (fake - average[0]).square().mean()
                assert terms["lecam_loss"].item() == pytest.approx(expected.item())
                penalized = terms["discriminator_loss"] + 0.3 * terms["lecam_loss"]
                assert total.item() == pytest.approx(penalized.item())
        subject.after_step(step)
        average = decay * average + (1 - decay) * (micro[0] + micro[1]) / 2
        torch.testing.assert_close(subject.discriminator.get_buffer("logit_means"), average)
    assert "logit_means" in subject.discriminator.state_dict()
    assert "logit_means" not in adversary().discriminator.state_dict(), "checkpoints without LeCam stay as they were"


def test_r1_in_closed_form() -> None:
    """D(x) = |x|^2 / 2 * w has the gradient w x; of several logits an image, the mean counts."""
    batch, w = images(3).requires_grad_(), torch.tensor(1.5, requires_grad=True)
    logits = w * batch.square().flatten(1).sum(1) / 2
    penalty = r1_loss(torch.stack([logits + 1, logits - 2], 1), batch)
    square = batch.detach().square().sum((1, 2, 3)).mean().item()
    assert penalty.item() == pytest.approx(1.5**2 * square, rel=1e-5)
    penalty.backward()
    assert w.grad is not None and w.grad.item() == pytest.approx(2 * 1.5 * square, rel=1e-5)


def test_r1_counts_on_its_steps_only() -> None:
    subject = adversary(r1_weight=10.0, r1_every=3)
    due = []
    for step in range(10, 17):
        total, terms = losses(subject, step)
        due.append("r1_loss" in terms)
        extra = 10.0 / 2 * 3 * terms["r1_loss"] if due[-1] else 0
        assert total.item() == pytest.approx((terms["discriminator_loss"] + extra).item())
    assert due == [True, False, False, True, False, False, True]


def test_r1_is_float32_and_leaves_the_running_statistics_alone() -> None:
    subject = adversary(norm="batch", r1_weight=1.0)
    exact = losses(subject, 10)[1]["r1_loss"]
    before = {name: tensor.clone() for name, tensor in subject.discriminator.state_dict().items()}
    batch, logits = images(), torch.zeros(4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        total, terms = subject.discriminator_loss(logits, logits, batch, 10)
    assert terms["r1_loss"].item() == exact.item()
    total.backward()
    assert not batch.requires_grad and batch.grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.discriminator.state_dict().items())
    assert any(bool(p.grad.any()) for p in subject.discriminator.parameters() if p.grad is not None)
