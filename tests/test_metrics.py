"""Metrics: against closed forms and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fqgan.metrics.frechet import FeatureStatistics, Gaussian, frechet_distance
from fqgan.metrics.pixels import eight_bit
from fqgan.metrics.psnr import PSNR, psnr
from fqgan.metrics.ssim import SSIM, ssim
from fqgan.metrics.usage import CodeUsage

skimage_metrics = pytest.importorskip("skimage.metrics")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    small = torch.rand(count, 3, 6, 6, generator=generator(seed)) * 2 - 1
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(-1, 1)


def pair(count: int = 4, height: int = 40, width: int = 33) -> tuple[Tensor, Tensor]:
    """Images, and the same with noise of a strength that grows from image to image; it leaves [-1, 1]."""
    x = smooth_images(count, height, width)
    strength = torch.linspace(0.02, 0.5, count)[:, None, None, None]
    return x, x + strength * torch.randn(x.shape, generator=generator(1))


def as_saved(images: Tensor) -> np.ndarray:
    """(b, H, W, 3) uint8, as a picture file has it."""
    return eight_bit(images).byte().permute(0, 2, 3, 1).numpy()


class Ranks:
    """`all_reduce` over states that other ranks would have: adds the same call's tensors of the recorded ranks."""

    def __init__(self, others: list[list[Tensor]]):
        self.others = others
        self.call = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        for other in self.others:
            tensor += other[self.call]
        self.call += 1
        return tensor


# --- pixels, PSNR, SSIM


def test_eight_bit_inverts_the_range_and_clips():
    values = torch.arange(256.0)
    assert torch.equal(eight_bit(values / 127.5 - 1), values)
    assert eight_bit(torch.tensor([-3.0, 1.001, 7.0])).tolist() == [0, 255, 255]


def test_psnr_closed_form():
    x = torch.zeros(1, 3, 8, 8)
    assert psnr(x, x + 10 / 127.5).item() == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(-torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)).item() == 0


def test_psnr_equals_skimage():
    x, y = pair()
    expected = [
        skimage_metrics.peak_signal_noise_ratio(a, b, data_range=255)
        for a, b in zip(as_saved(x), as_saved(y), strict=True)
    ]
    np.testing.assert_allclose(psnr(x, y).numpy(), expected, rtol=1e-12)


def test_psnr_mean_and_pooled_over_batches():
    x, y = pair()
    metric = PSNR()
    metric.update(x[:3], y[:3])
    metric.update(x[3:], y[3:])
    result = metric.compute()
    pooled = skimage_metrics.peak_signal_noise_ratio(as_saved(x), as_saved(y), data_range=255)
    assert result["psnr"] == pytest.approx(psnr(x, y).mean().item())
    assert result["psnr_pooled"] == pytest.approx(pooled)
    assert result["identical"] == 0


def test_psnr_of_identical_images():
    x, y = pair()
    y[1] = x[1]
    assert psnr(x, y)[1] == math.inf
    metric = PSNR()
    metric.update(x, y)
    result = metric.compute()
    assert result["identical"] == 1
    assert result["psnr"] == pytest.approx(psnr(x, y)[[0, 2, 3]].mean().item())
    assert math.isfinite(result["psnr_pooled"])
    metric.reset()
    metric.update(x, x)
    assert metric.compute() == {"psnr": math.inf, "psnr_pooled": math.inf, "identical": 4}


def test_pixel_metrics_show_nan():
    x, y = pair()
    y[0, 0, 0, 0] = math.nan
    for metric in (PSNR(), SSIM()):
        metric.update(x, y)
        assert all(math.isnan(value) for key, value in metric.compute().items() if key != "identical")


@pytest.mark.parametrize(("height", "width"), [(40, 33), (11, 11)])
def test_ssim_equals_skimage(height, width):
    x, y = pair(height=height, width=width)
    expected = [
        skimage_metrics.structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
        )
        for a, b in zip(as_saved(x), as_saved(y), strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, atol=1e-12)


def test_ssim_equals_torchmetrics():
    image_metrics = pytest.importorskip("torchmetrics.functional.image")
    x, y = pair()
    _, maps = image_metrics.structural_similarity_index_measure(
        eight_bit(x).double(), eight_bit(y).double(), data_range=255.0, reduction="none", return_full_image=True
    )
    # torchmetrics' own mean takes in a border of 5 reflected pixels; skimage's and Wang's do not
    torch.testing.assert_close(ssim(x, y), maps[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-9, rtol=0)


def test_ssim_closed_form():
    x, _ = pair()
    torch.testing.assert_close(ssim(x, x), torch.ones(4, dtype=torch.float64))
    dark, bright = torch.full((1, 3, 16, 16), -1.0), torch.full((1, 3, 16, 16), 1.0)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, bright).item() == pytest.approx(c1 / (255**2 + c1))


def test_ssim_averages_over_images():
    x, y = pair()
    metric = SSIM()
    metric.update(x[:1], y[:1])
    metric.update(x[1:], y[1:])
    assert metric.compute()["ssim"] == pytest.approx(ssim(x, y).mean().item())


def test_ssim_needs_its_window():
    with pytest.raises(ValueError, match="at least 11"):
        ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_pixel_metrics_refuse_unequal_shapes_and_nothing(metric):
    with pytest.raises(ValueError, match="one shape"):
        metric().update(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="no images"):
        metric().compute()


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_pixel_metrics_add_up_over_ranks_and_autocast_does_not_matter(metric):
    x, y = pair()
    whole, first, second = metric(), metric(), metric()
    whole.update(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        first.update(x[:1], y[:1])
        second.update(x[1:], y[1:])
    before = first.state()
    assert first.compute(Ranks([[second.state()]])) == pytest.approx(whole.compute())
    assert torch.equal(first.state(), before)  # the reduction works on a copy


# --- Frechet distance


def numpy_gaussian(features: np.ndarray) -> Gaussian:
    mean, covariance = features.mean(0), np.cov(features, rowvar=False)
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance), len(features))


def random_features(count: int, dim: int, seed: int) -> Tensor:
    mix = torch.randn(dim, dim, generator=generator(seed), dtype=torch.float64)
    return torch.randn(count, dim, generator=generator(seed + 1), dtype=torch.float64) @ mix + seed


def statistics(*batches: Tensor) -> FeatureStatistics:
    result = FeatureStatistics(batches[0].shape[1])
    for batch in batches:
        result.update(batch)
    return result


def assert_gaussians_close(a: Gaussian, b: Gaussian, rtol: float = 1e-10) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=rtol, atol=1e-10)


def test_statistics_equal_numpy_and_do_not_depend_on_batches():
    features = random_features(100, 7, 3)
    expected = numpy_gaussian(features.numpy())
    assert_gaussians_close(statistics(features).compute(), expected)
    assert_gaussians_close(statistics(features[:1], features[1:60], features[:0], features[60:]).compute(), expected)


def test_statistics_are_stable_for_a_large_mean():
    # sums of squares would lose every digit here: 1e18 + 1
    features = random_features(500, 3, 5)
    shifted = statistics(*(features + 1e9).split(37)).compute()
    torch.testing.assert_close(shifted.covariance, statistics(features).compute().covariance, rtol=1e-6, atol=1e-6)


def test_statistics_reduce_over_ranks():
    features = random_features(90, 5, 2)
    parts = [statistics(features[:10]), statistics(features[10:70]), statistics(features[70:]), FeatureStatistics(5)]
    expected = statistics(features).compute()
    # what each rank hands to the two reductions: sum and count, then the scatter about the common mean
    sums = [torch.cat([part.mean * part.count, torch.tensor([part.count])]) for part in parts]
    shifts = [part.mean - expected.mean for part in parts]
    scatters = [p.scatter + p.count * torch.outer(s, s) for p, s in zip(parts, shifts, strict=True)]
    for rank, part in enumerate(parts):
        others = [[sums[i], scatters[i]] for i in range(len(parts)) if i != rank]
        assert_gaussians_close(part.compute(Ranks(others)), expected)


def test_statistics_refuse_wrong_shapes_and_too_few():
    with pytest.raises(ValueError, match="features must be"):
        FeatureStatistics(4).update(torch.zeros(2, 5))
    for count in (0, 1):
        with pytest.raises(ValueError, match="at least 2"):
            statistics(torch.zeros(count, 4)).compute()
    with pytest.raises(ValueError, match="cannot be compared"):
        frechet_distance(statistics(torch.zeros(2, 4)).compute(), statistics(torch.zeros(2, 5)).compute())


def test_frechet_closed_form_of_commuting_covariances():
    # A = U diag(s^2) U', B = U diag(t^2) U': |m_a - m_b|^2 + sum (s - t)^2
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator(0), dtype=torch.float64)).Q
    s = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    t = torch.tensor([2.0, 0.0, 1.0, 5.0, 0.1, 9.0], dtype=torch.float64)
    mean = torch.arange(6, dtype=torch.float64)
    a = Gaussian(mean, rotation * s**2 @ rotation.T, 10)
    b = Gaussian(mean + 0.5, rotation * t**2 @ rotation.T, 10)
    expected = 6 * 0.25 + (s - t).square().sum().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_frechet_equals_scipys_sqrtm():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (statistics(random_features(200, 12, seed)).compute() for seed in (1, 4))
    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    mean = (a.mean - b.mean).square().sum().item()
    expected = mean + np.trace(a.covariance.numpy() + b.covariance.numpy() - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("converges", [True, False])
def test_frechet_of_rank_deficient_covariances(converges: bool, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    if not converges:
        monkeypatch.setattr(torch.linalg, "eigh", fails)
    # 5 features in 40 dimensions; the closed form holds in the 4 dimensions that they span
    features = random_features(5, 40, 7)
    a = statistics(features).compute()
    b = statistics(3 * features).compute()
    expected = 4 * a.mean.square().sum() + 4 * a.covariance.trace()  # (3 m - m)^2 and (3 s - s)^2
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)
    assert 0 <= frechet_distance(a, a) < 1e-10 * a.covariance.trace().item()


def test_frechet_grows_with_the_shift():
    a = statistics(random_features(50, 8, 1)).compute()
    assert frechet_distance(a, a._replace(mean=a.mean + 2)) == pytest.approx(8 * 4, rel=1e-10)


# --- codebook usage


def test_usage_of_uniform_codes():
    usage = CodeUsage(16)
    usage.update(torch.arange(8).repeat(6).view(2, 4, 6))
    result = usage.compute()
    assert result["usage"] == 0.5
    assert result["perplexity"] == pytest.approx(8)
    assert result["bits"] == pytest.approx(3)
    assert result["positions"] == 48


def test_usage_of_one_code_and_of_uneven_codes():
    usage = CodeUsage(10)
    usage.update(torch.full((7,), 9))
    assert usage.compute() == pytest.approx({"usage": 0.1, "perplexity": 1, "bits": 0, "positions": 7})
    usage.reset()
    usage.update(torch.tensor([0, 0, 1, 2]))  # entropy of 1/2, 1/4, 1/4: 1.5 bits
    result = usage.compute()
    assert result["bits"] == pytest.approx(1.5)
    assert result["perplexity"] == pytest.approx(2**1.5)


def test_usage_state_roundtrip_and_ranks():
    codes = torch.randint(0, 32, (6, 4, 4), generator=generator(0))
    whole, first, second = CodeUsage(32), CodeUsage(32), CodeUsage(32)
    whole.update(codes)
    first.update(codes[:2])
    second.update(codes[2:])
    assert torch.equal(whole.state(), codes.flatten().bincount(minlength=32))
    assert first.compute(Ranks([[second.state()]])) == whole.compute()
    restored = CodeUsage(32)
    restored.load_state(first.state())
    restored.update(codes[2:])
    assert restored.compute() == whole.compute()
    with pytest.raises(ValueError, match="state of"):
        CodeUsage(1).load_state(first.state())


def test_usage_update_waits_for_nothing():
    # a tensor on the meta device has no values: any look at them, as bincount takes, would raise
    CodeUsage(8, "meta").update(torch.empty(2, 3, 3, dtype=torch.int64, device="meta"))


def test_usage_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no codes"):
        CodeUsage(4).compute()
