"""What users hand to metrics: taken as they mean it, or refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from faces import NAN, message
from test_tokenizer import images

from fqgan.lab.understanding.scores import bleu_4
from fqgan.metrics.bank import FeatureBank
from fqgan.metrics.class_means import NearestClassMean
from fqgan.metrics.frechet import FeatureStatistics
from fqgan.metrics.inception_score import InceptionScore
from fqgan.metrics.kernel import kernel_distance
from fqgan.metrics.neighbours import precision_recall
from fqgan.metrics.psnr import PSNR, psnr
from fqgan.metrics.ssim import ssim
from fqgan.metrics.usage import CodeUsage


def test_metrics_take_other_forms() -> None:
    x, y = images(), images().flip(3)
    bytes_ = ((x + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(psnr(x.numpy(), y.double()), psnr(x, y))
    assert torch.equal(psnr(bytes_, y), psnr(x, y))
    assert torch.equal(ssim(bytes_.numpy(), y), ssim(x, y))
    assert psnr(x[:0], y[:0]).shape == ssim(x[:0], y[:0]).shape == (0,)
    codes = torch.tensor([[0, 1], [1, 3]])
    for form in (codes, codes.int(), codes.numpy().astype(np.uint16), codes.tolist()):
        usage = CodeUsage(5)
        usage.update(form)
        assert usage.state().tolist() == [1, 2, 0, 1, 0]
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert precision_recall(features.numpy(), features[:5]) == precision_recall(features, features[:5])
    one, other = FeatureStatistics(4), FeatureStatistics(4)
    one.update(features)
    other.update(features.double().numpy())
    assert torch.equal(one.compute().covariance, other.compute().covariance)
    empty = PSNR()
    empty.update(x[:0], y[:0])
    assert message(empty.compute) == "PSNR of no images"


def test_metrics_refuse_what_they_cannot_count() -> None:
    def update(metric: Any, *values: Any) -> str:
        return message(metric.update, *values)

    x = images()
    assert "of one shape" in update(PSNR(), x, x[:1])
    assert "images must be (b, c, H, W), got (3, 32, 32)" in update(PSNR(), x[0], x[0])
    assert "got None" in update(PSNR(), x, None)
    assert "uint8 in 0..255, got int64" in update(PSNR(), x.long(), x)
    assert "at least 11" in message(ssim, x[..., :10], x[..., :10])
    for codes in ([5], [-1]):
        assert f"codes must lie in [0, 5), got {codes}" in update(CodeUsage(5), codes)
    assert "codes must be whole numbers" in update(CodeUsage(5), torch.rand(3))
    assert "features must be (n, 4), got (2, 5)" in update(FeatureStatistics(4), torch.zeros(2, 5))
    assert "positions must lie in [0, 3), got [3]" in update(InceptionScore(3, 2), torch.zeros(1, 2), [3])
    assert "logits must be (n, 2)" in update(InceptionScore(3, 2), torch.zeros(2), [0])
    assert "positions must be one for each of 2, got 1" in update(FeatureBank(3, 2, 3), torch.zeros(2, 2), [0])
    assert "labels must lie in [0, 2), got [2]" in message(lambda: NearestClassMean(2, 3).fit(torch.zeros(1, 3), [2]))
    assert "state of (4,) values" in message(lambda: CodeUsage(5).load_state(torch.zeros(4)))
    bad = torch.full((9, 2), NAN)
    for distance in (precision_recall, kernel_distance):
        assert "not finite" in message(distance, bad, torch.zeros(9, 2))
    assert "k must be a whole number from 1" in message(precision_recall, bad[:, :0], bad[:, :0], k=0)
    assert "captions must be words" in message(bleu_4, ["a dog"], [["a dog"]])  # pyright: ignore
