"""The independence loss: HSIC of the factors' features, normalised."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from patterns import noise
from torch import Tensor

from fqgan.config import LossConfig, TokenizerRunConfig
from fqgan.tokenizer.losses import disentanglement_loss, independence_loss, tokenizer_loss
from fqgan.tokenizer.model import FactorizedTokenizer


def features(*columns: Tensor) -> list[Tensor]:
    """(n,) or (n, d) samples as features of n images of one position."""
    return [each.double().reshape(len(each), -1, 1, 1) for each in columns]


def sines(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], 1)


@pytest.mark.parametrize("counts", [(10, 20, 30, 40), (25, 1, 2, 30), (5, 20, 20, 5)])
def test_of_two_binary_variables_it_is_their_squared_correlation(counts: tuple[int, ...]) -> None:
    """Whatever the kernel's width: a Gram matrix of +-1 is a constant and a multiple of x x^T."""
    x = torch.tensor([-1.0, -1, 1, 1]).repeat_interleave(torch.tensor(counts))
    y = torch.tensor([-1.0, 1, -1, 1]).repeat_interleave(torch.tensor(counts))
    correlation = torch.corrcoef(torch.stack([x, y]).double())[0, 1]
    torch.testing.assert_close(independence_loss(features(x, y)), correlation**2)


def test_it_is_zero_for_independent_samples_and_one_for_scaled_copies() -> None:
    x, y = (each.flatten() for each in torch.meshgrid(torch.randn(7), torch.randn(5), indexing="ij"))
    assert independence_loss(features(x, y)).abs() < 1e-12
    torch.testing.assert_close(independence_loss(features(x, 3 * x + 1)), torch.tensor(1.0, dtype=torch.float64))


def test_it_equals_the_formula_and_sees_what_covariance_does_not() -> None:
    """y = x^2 is not correlated with x; K, L and H written out. Three factors: the mean over the pairs."""
    x = torch.tensor([-1.0, 0, 1], dtype=torch.float64)
    y, z = x**2, torch.tensor([0.3, -2, 1], dtype=torch.float64)

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        k, m = (torch.exp(-((v[:, None] - v) ** 2) / ((v[:, None] - v) ** 2).mean()) for v in (a, b))
        h = torch.eye(3, dtype=torch.float64) - 1 / 3
        return (k @ h @ m @ h).trace() / 4

    def normalised(a: Tensor, b: Tensor) -> Tensor:
        return hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt()

    found = independence_loss(features(x, y))
    torch.testing.assert_close(found, normalised(x, y))
    assert found > 0.1 and ((x - x.mean()) * (y - y.mean())).sum() == 0
    mean = (normalised(x, y) + normalised(x, z) + normalised(y, z)) / 3
    torch.testing.assert_close(independence_loss(features(x, y, z)), mean)
    assert independence_loss(features(x)) == 0


def test_features_that_are_all_the_same_give_finite_gradients() -> None:
    a, b = torch.ones(4, 3, 1, 1, requires_grad=True), noise(4, 3, 1, 1).requires_grad_()
    loss = independence_loss([a, b])
    loss.backward()
    assert loss == 0 and a.grad is not None and a.grad.isfinite().all()


def test_many_positions_are_sampled() -> None:
    """512 of 4096: of a copy it is still 1, of independent features near 0."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 3, 32, 32), torch.randn(4, 2, 32, 32)
    assert independence_loss([a, a]).item() == pytest.approx(1, abs=1e-3)
    assert independence_loss([a, b]) < 0.02


def information(a: Tensor, b: Tensor, bins: int = 8) -> float:
    """Nats of the sectors of two samples of angles."""
    codes = [((each.atan2(other) / math.tau + 0.5) * bins).long().clamp(max=bins - 1) for other, each in (a.T, b.T)]
    joint = torch.zeros(bins, bins, dtype=torch.float64)
    joint.index_put_(tuple(codes), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    joint /= len(a)
    return float((joint * (joint / (joint.sum(1, keepdim=True) * joint.sum(0))).clamp(min=1e-30).log()).sum())


def test_it_lowers_the_information_that_right_angles_leave() -> None:
    """Where each vector is the other one turned by 90 degrees, Eq. 7 is at its minimum and one code tells the other;
    this loss is at its maximum, and descending it makes them tell little."""
    angles = torch.rand(512, generator=torch.Generator().manual_seed(0)) * math.tau
    a, b = sines(angles), sines(angles + math.pi / 2)
    assert disentanglement_loss(features(a, b)) < 1e-12
    assert independence_loss(features(a, b)) == pytest.approx(1, abs=1e-6)
    before = information(a, b)
    assert before > 0.9 * math.log(8)
    moved = [each.clone().requires_grad_() for each in (angles, angles + math.pi / 2)]
    optimizer = torch.optim.Adam(moved, lr=0.1)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = independence_loss([sines(each)[:, :, None, None] for each in moved])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05
    assert information(*(sines(each.detach()) for each in moved)) < 0.5 * before


def test_the_term_counts_with_its_weight_and_reaches_the_encoder(tiny: TokenizerRunConfig) -> None:
    torch.manual_seed(0)
    model, images = FactorizedTokenizer(tiny.model), noise(2, 3, 32, 32)
    assert "independence_loss" not in tokenizer_loss(model(images), images, LossConfig())[1]
    others = ("reconstruction", "codebook", "commitment", "entropy", "disentangle")
    alone = replace(LossConfig(independence_weight=2.0), **{f"{name}_weight": 0.0 for name in others})
    output = model(images)
    total, terms = tokenizer_loss(output, images, alone)
    expected = independence_loss([q.features for q in output.quantized])
    assert terms["independence_loss"].item() == pytest.approx(expected.item())
    assert total.item() == pytest.approx(2 * expected.item())
    total.backward()
    gradient = model.encoder.conv_in.weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.any()
