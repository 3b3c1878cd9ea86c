"""StyleGAN2's discriminator: shapes, its filter and its minibatch deviation in closed form, gradients, learning."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.engine.sizes import num_parameters
from fqgan.tokenizer.discriminator import LowPass, PatchGAN, StyleGANDiscriminator, minibatch_deviation
from fqgan.tokenizer.losses import gan_discriminator_loss, r1_loss


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def small() -> StyleGANDiscriminator:
    torch.manual_seed(0)
    return StyleGANDiscriminator(4, 32)


@pytest.mark.parametrize(("size", "grid"), [(32, 4), (40, 5), (64, 4), (96, 6), (112, 7)])
def test_one_logit_an_image_at_every_size(size: int, grid: int) -> None:
    discriminator = StyleGANDiscriminator(2, size)
    assert discriminator.linear.in_features == discriminator.linear.out_features * grid**2
    real, fake = discriminator(images(3, size), images(2, size))
    assert real.shape == (3, 1) and fake.shape == (2, 1)


def test_size_at_256_pixels() -> None:
    """Widths 64, 128, 256, 512 from then on; the sum by hand, layer after layer."""
    widths = [64, 128, 256, 512, 512, 512, 512]
    expected = 3 * 64 + 64
    for a, b in pairwise(widths):
        expected += (9 * a * a + a) + (9 * a * b + b) + a * b
    expected += (9 * 513 * 512 + 512) + (512 * 16 * 512 + 512) + (512 + 1)
    assert num_parameters(StyleGANDiscriminator(64, 256)) == expected == 24_001_089


def test_filter_of_a_constant_image_is_the_constant() -> None:
    """But for the zeros around it: a border value misses one of eight parts."""
    constant = torch.full((2, 5, 8, 8), 3.0)
    halved = LowPass(stride=2, padding=1)(constant)
    assert halved.shape == (2, 5, 4, 4)
    assert torch.equal(halved[:, :, 1:-1, 1:-1], torch.full((2, 5, 2, 2), 3.0))
    assert halved[0, 0, 0].tolist() == [3 * 49 / 64, 3 * 7 / 8, 3 * 7 / 8, 3 * 49 / 64]


def test_filter_stops_what_would_fold() -> None:
    """The highest frequency, which subsampling would turn into a constant, is gone; an impulse shows the taps."""
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert not LowPass(stride=2, padding=1)(stripes)[:, :, 1:-1, 1:-1].any()
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[0, 0, 2, 2] = 64
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    assert torch.equal(LowPass(stride=1, padding=2)(impulse)[0, 0, 1:5, 1:5], torch.outer(taps, taps))


def test_residual_block_is_the_mean_of_its_paths(small: StyleGANDiscriminator) -> None:
    """Over sqrt(2), so that the variance stays: without the convolutions' path only the skip's is left."""
    block = small.blocks[0]
    assert isinstance(block, nn.Module)
    x = torch.randn(2, 4, 8, 8)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.einsum("oi,h,w->oihw", block.skip.weight[:, :, 0, 0], taps, taps)  # pyright: ignore
    with torch.no_grad():
        nn.init.zeros_(block.down.weight)  # pyright: ignore
        torch.testing.assert_close(block(x), F.conv2d(x, kernel, stride=2, padding=1) / 2**0.5)


def test_minibatch_deviation_in_closed_form() -> None:
    features = torch.zeros(4, 2, 1, 3)
    features[1] = 2  # of 0 and 2: 1
    features[2:, 0] = 5  # no deviation
    features[3, 1] = 8  # of 0 and 8: 4, in one of two channels
    deviation = minibatch_deviation(features, 2)
    assert deviation.shape == (4, 1, 1, 3)
    torch.testing.assert_close(deviation[:, 0, 0, 0], torch.tensor([1.0, 1.0, 2.0, 2.0]), atol=1e-4, rtol=0)
    assert torch.equal(deviation, deviation[..., :1].expand(4, 1, 1, 3))


@pytest.mark.parametrize(("count", "size"), [(8, 4), (6, 3), (5, 1), (2, 2), (1, 1)])
def test_groups_have_the_largest_size_that_fits(count: int, size: int) -> None:
    features = torch.randn(count, 3, 2, 2)
    expected = features.reshape(-1, size, 3, 2, 2).std(1, correction=0).mean((1, 2, 3)).repeat_interleave(size)
    torch.testing.assert_close(minibatch_deviation(features, 4)[:, 0, 0, 0], expected, atol=1.1e-4, rtol=1e-4)


def test_real_and_fake_do_not_mix(small: StyleGANDiscriminator) -> None:
    a, b, c = (images(4, 32, seed) for seed in range(3))
    first, second = small(a, b)[0], small(a, c)[0]
    assert torch.equal(first, second) and torch.equal(first, small(a)[0])
    assert not torch.equal(small(torch.cat([a[:2], b[:2]]))[0][:2], first[:2]), "the others of a group do count"


def test_images_reach_the_logit_in_every_pixel(small: StyleGANDiscriminator) -> None:
    batch = images(4, 32).requires_grad_()
    small(batch)[0].sum().backward()
    assert batch.grad is not None and batch.grad.abs().sum(1).min() > 0


def test_bf16_is_close(small: StyleGANDiscriminator) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = small(images(4, 32))
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), small(images(4, 32))[0], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", ["stylegan", "batch", "group"])
@pytest.mark.parametrize("same", [False, True])
def test_gradient_penalties_are_finite(kind: str, same: bool) -> None:
    """Second derivatives too, and where all images are one: no deviation, whose root has no derivative."""
    torch.manual_seed(0)
    discriminator = StyleGANDiscriminator(4, 32) if kind == "stylegan" else PatchGAN(32, 2, kind)
    batch = (images(1, 32).expand(4, -1, -1, -1) if same else images(4, 32)).clone().requires_grad_()
    penalty = r1_loss(discriminator(batch)[0], batch)
    penalty.backward()
    gradients = [p.grad for p in discriminator.parameters() if p.grad is not None]
    assert penalty > 0 and torch.isfinite(penalty)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(bool(gradient.any()) for gradient in gradients) >= len(list(discriminator.parameters())) // 2


def test_it_learns_to_tell_images_from_their_blurred_copies(small: StyleGANDiscriminator) -> None:
    def pair(seed: int) -> tuple[Tensor, Tensor]:
        sharp = images(8, 32, seed)
        return sharp, F.interpolate(F.avg_pool2d(sharp, 2), scale_factor=2)

    adam = torch.optim.Adam(small.parameters(), 2e-3)
    for seed in range(25):
        adam.zero_grad()
        gan_discriminator_loss(*small(*pair(seed)), "non-saturating").backward()
        adam.step()
    real, fake = small(*pair(1000))
    assert (real > 0).all() and (fake < 0).all()
