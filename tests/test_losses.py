"""Loss terms against reference numbers and their formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from released import filled
from torch import Tensor

from fqgan.config import FactorConfig, LossConfig, TokenizerConfig
from fqgan.tokenizer.discriminator import PatchGAN, as_critic
from fqgan.tokenizer.losses import (
    cosine_loss,
    disentanglement_loss,
    gan_discriminator_loss,
    gan_generator_loss,
    info_nce_loss,
    reconstruction_loss,
    tokenizer_loss,
)
from fqgan.tokenizer.model import FactorizedTokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())
SMALL = TokenizerConfig(
    image_size=16,
    channels=32,
    channel_multipliers=(1, 1),
    res_blocks=1,
    z_channels=32,
    adapter_head_dim=16,
    feature_head_width=16,
    feature_head_depth=1,
    factors=(FactorConfig("a", 16, 4, 1), FactorConfig("b", 16, 4, 1, teacher="toy", teacher_dim=6)),
)


def draws() -> list[Tensor]:
    rng = np.random.Generator(np.random.PCG64(6))
    shapes = [(2, 8, 16, 16), (2, 8, 16, 16), (8, 768), (8, 768)]
    return [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]


def test_reference_disentanglement_and_info_nce() -> None:
    a, b, teacher, student = draws()
    unit = [F.normalize(x, dim=1) for x in (a, b)]
    assert disentanglement_loss(unit).item() == pytest.approx(GOLDEN["disentangle_unweighted"], rel=1e-6)
    assert info_nce_loss(student, teacher).item() == pytest.approx(GOLDEN["infonce"], rel=1e-6)


def test_reference_patchgan() -> None:
    discriminator = PatchGAN().eval()
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            parameter.copy_(filled(name, tuple(parameter.shape)))
        rng = np.random.Generator(np.random.PCG64(7))
        images = torch.from_numpy(rng.standard_normal((2, 3, 256, 256), dtype=np.float32)).clip(-1, 1)
        (logits,) = discriminator(images)
    golden = GOLDEN["patchgan"]
    assert list(logits.shape) == golden["out_shape"]
    assert logits.mean().item() == pytest.approx(golden["mean"], rel=1e-6)
    assert logits.std().item() == pytest.approx(golden["std"], rel=1e-5)
    torch.testing.assert_close(logits[0, 0, 0, :8], torch.tensor(golden["row0"]), rtol=1e-5, atol=1e-6)


def test_disentanglement_in_closed_form() -> None:
    x, y = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    x[:, 0] = 1
    y[:, 0] = torch.tensor([math.cos(math.pi / 3), 0.0])
    y[:, 1] = torch.tensor([math.sin(math.pi / 3), 1.0])
    assert disentanglement_loss([x, y]).item() == pytest.approx(0.25 / 2)
    # mean over the three pairs: (x, x) 1, (x, y) 1/8 twice
    assert disentanglement_loss([x, x, y]).item() == pytest.approx((1 + 0.125 + 0.125) / 3)
    assert disentanglement_loss([x]).item() == 0


def test_info_nce_in_closed_form() -> None:
    eye = torch.eye(4)
    expected = -math.log(math.e / (math.e + 3))
    assert info_nce_loss(5 * eye, eye).item() == pytest.approx(expected)
    sharp = -math.log(math.exp(10) / (math.exp(10) + 3))
    assert info_nce_loss(eye, eye, temperature=0.1).item() == pytest.approx(sharp, rel=1e-2)


def test_info_nce_at_batch_one() -> None:
    prediction = torch.randn(1, 8, requires_grad=True)
    loss = info_nce_loss(prediction, torch.randn(1, 8))
    loss.backward()
    assert loss.item() == 0 and prediction.grad is not None and not prediction.grad.any()


def test_cosine_loss_in_closed_form(in_float64: None) -> None:
    predictions = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    loss = cosine_loss(predictions, torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 0.0], [9.0, 0.0]]))
    assert loss.item() == pytest.approx((0 + 1 + (1 - math.sqrt(0.5)) + 2) / 4)
    loss.backward()  # its length is free: no gradient along a prediction
    assert predictions.grad is not None and torch.allclose((predictions.grad * predictions).sum(1), torch.zeros(4))
    assert predictions.grad[1].tolist() == pytest.approx([-0.5 / 4, 0])


def test_gan_losses() -> None:
    """Each kind at two logits, by hand; cross-entropy also as torch has it, and where exp would overflow."""
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert gan_discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * (0.25 + 0.75))
    assert gan_generator_loss(fake, "hinge").item() == gan_generator_loss(fake, "vanilla").item() == 1.25

    def softplus(x: float) -> float:
        return math.log(1 + math.exp(x))

    expected = 0.5 * ((softplus(-2) + softplus(-0.5)) / 2 + (softplus(-3) + softplus(0.5)) / 2)
    for kind in ("vanilla", "non-saturating"):
        assert gan_discriminator_loss(real, fake, kind).item() == pytest.approx(expected)
    entropy = F.binary_cross_entropy_with_logits(torch.cat([real, fake]), torch.tensor([1.0, 1, 0, 0]))
    assert expected == pytest.approx(entropy.item())
    assert gan_generator_loss(fake, "non-saturating").item() == pytest.approx((softplus(3) + softplus(-0.5)) / 2)
    assert gan_generator_loss(torch.tensor([-200.0]), "non-saturating").item() == 200


def test_reconstruction_losses() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5)
    assert reconstruction_loss(a, b, "l1").item() == 0.5
    assert reconstruction_loss(a, b, "l2").item() == 0.25


@pytest.fixture
def step() -> tuple[FactorizedTokenizer, Tensor, Tensor]:
    torch.manual_seed(0)
    return FactorizedTokenizer(SMALL), torch.rand(3, 3, 16, 16) * 2 - 1, torch.randn(3, 6)


def test_total_is_the_weighted_sum(step: tuple[FactorizedTokenizer, Tensor, Tensor]) -> None:
    model, images, target = step
    config = LossConfig(reconstruction="l1", reconstruction_weight=2.0)
    output = model(images, entropy=True)
    compared: list[Tensor] = []

    def gan(image_loss: Tensor) -> tuple[Tensor, Tensor]:
        compared.append(image_loss)
        return torch.tensor(-2.0), torch.tensor(0.5)

    total, terms = tokenizer_loss(
        output,
        images,
        config,
        perceptual=torch.tensor([1.0, 2.0, 3.0]),
        targets=[None, target],
        gan=gan,
    )
    weights = {
        "reconstruction": 2.0,
        "perceptual": 1.0,
        "codebook": 1.0,
        "commitment": 0.25,
        "entropy": 0.03,
        "disentangle": 0.1,
        "representation": 0.5,
        "gan": 0.5,
    }
    assert terms.keys() == {f"{name}_loss" for name in weights} | {"gan_weight"}
    assert not any(term.requires_grad for term in terms.values())
    expected = sum(weight * terms[f"{name}_loss"].item() for name, weight in weights.items())
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert terms["perceptual_loss"].item() == 2 and terms["gan_weight"].item() == 0.5
    (image_loss,) = compared  # what the adaptive weight differentiates
    assert image_loss.item() == pytest.approx(2 * terms["reconstruction_loss"].item() + 2, rel=1e-6)
    assert image_loss.requires_grad
    quantized = [q.codebook_loss.item() for q in output.quantized]
    assert terms["codebook_loss"].item() == pytest.approx(sum(quantized))
    assert terms["representation_loss"].item() == info_nce_loss(output.predictions[1], target).item()
    _, terms = tokenizer_loss(output, images, replace(config, representation="cosine"), targets=[None, target])
    assert terms["representation_loss"].item() == cosine_loss(output.predictions[1], target).item()


def test_disentanglement_does_not_reach_the_codebooks(step: tuple[FactorizedTokenizer, Tensor, Tensor]) -> None:
    model, images, _ = step
    off = LossConfig(
        reconstruction_weight=0, codebook_weight=0, commitment_weight=0, entropy_weight=0, disentangle_weight=1
    )
    total, terms = tokenizer_loss(model(images), images, off)
    total.backward()
    assert total.item() == pytest.approx(terms["disentangle_loss"].item())
    for quantizer in model.quantizers:
        gradient = quantizer.codebook.grad
        assert gradient is None or not gradient.any()
    encoder = model.encoder.conv_in.weight.grad
    assert encoder is not None and encoder.any()


def test_critic_leaves_the_discriminator_alone() -> None:
    """The generator's phase must neither train the discriminator nor touch its running statistics."""
    torch.manual_seed(0)
    discriminator = PatchGAN(32, 2).train()
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    fake = torch.randn(2, 3, 32, 32, requires_grad=True)
    with as_critic(discriminator) as critic:
        (logits,) = critic(fake)
    logits.sum().backward()
    assert fake.grad is not None and fake.grad.any()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in discriminator.state_dict().items())
    (again,) = discriminator(fake)
    torch.testing.assert_close(again, logits)  # batch statistics in both
    assert not torch.equal(before["main.3.running_mean"], discriminator.state_dict()["main.3.running_mean"])
