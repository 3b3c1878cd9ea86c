"""Metrics that compare sets of features: closed forms, torch-fidelity, torchmetrics and prdc."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fqgan.base.spread import spread_evenly
from fqgan.metrics.bank import FeatureBank
from fqgan.metrics.frechet import FeatureStatistics, frechet_distance
from fqgan.metrics.inception_score import InceptionScore
from fqgan.metrics.kernel import kernel_distance
from fqgan.metrics.neighbours import precision_recall, radii, squared_distances


def cloud(count: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


# --- features that are kept


def test_what_is_spread_evenly_has_one_of_each_span_and_all_classes_that_take_turns() -> None:
    """Half of the pictures, a tenth and a fifth of sets whose classes go round: each class as often as by chance."""
    for count, limit, classes in ((50_000, 25_000, 1000), (50_000, 5_000, 10), (10_000, 2_000, 5), (999, 500, 2)):
        chosen = np.array(spread_evenly(count, limit))
        edges = np.arange(limit + 1) * count // limit
        assert (chosen >= edges[:-1]).all() and (chosen < edges[1:]).all()
        counts, expected = np.bincount(chosen % classes, minlength=classes), limit / classes
        assert ((counts - expected) ** 2 / expected).sum() < classes + 5 * (2 * classes) ** 0.5
        assert np.array_equal(chosen, spread_evenly(count, limit))
    assert [*spread_evenly(4, 0)] == [*spread_evenly(4, 9)] == [0, 1, 2, 3] and not len(spread_evenly(0, 3))


@pytest.mark.parametrize(("count", "kept"), [(10, 4), (10, 10), (10, 99), (7, 3), (5, 0)])
def test_a_bank_keeps_a_feature_of_each_span_in_order_whatever_the_batches(count: int, kept: int) -> None:
    features = cloud(count, 3, 0)
    expected = features[spread_evenly(count, kept)] if kept else features[:0]
    for order in (torch.arange(count), torch.randperm(count, generator=torch.Generator().manual_seed(1))):
        bank = FeatureBank(count, 3, kept)
        for part in order.split(3):
            bank.update(features[part], part)
        assert torch.equal(bank.compute(), expected)


def test_banks_of_ranks_add_up_and_leave_out_what_nobody_has_seen() -> None:
    features = cloud(9, 2, 0)
    banks = [FeatureBank(9, 2, 9) for _ in range(2)]
    banks[0].update(features[:4], torch.arange(4))
    banks[1].update(features[5:], torch.arange(5, 9))
    handed = [[bank._rows, bank._filled] for bank in banks]
    for rank, bank in enumerate(banks):
        others = iter(handed[1 - rank])
        assert torch.equal(bank.compute(lambda t, others=others: t + next(others)), features[[*range(4), *range(5, 9)]])


# --- Inception Score


def score_of(logits: Tensor, chunk: int = 5000, batch: int = 64) -> dict[str, float]:
    metric = InceptionScore(len(logits), logits.shape[1], chunk)
    for positions in torch.arange(len(logits)).split(batch):
        metric.update(logits[positions], positions)
    return metric.compute()


def test_the_score_of_known_distributions() -> None:
    """Certain and even over ten classes: 10. The same for all images: 1. Half certain: by the definition."""
    certain = 1000 * torch.eye(10).repeat(6, 1)
    assert score_of(certain) == pytest.approx({"score": 10, "score_std": 0})
    assert score_of(torch.zeros(50, 7))["score"] == pytest.approx(1)
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    divergence = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert score_of(logits)["score"] == pytest.approx(math.exp(divergence))


def test_the_score_equals_torch_fidelitys() -> None:
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = 3 * cloud(400, 12, 0)
    expected = metric_isc.isc_features_to_metric(logits, splits=4, shuffle=False)
    found = score_of(logits, chunk=100)
    assert found["score"] == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found["score_std"] == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_the_score_takes_an_incomplete_last_chunk_and_does_not_depend_on_batches_or_ranks() -> None:
    logits = 2 * cloud(230, 5, 3)
    parts = [score_of(part)["score"] for part in logits.split(100)]  # 100, 100 and 30, as ADM's evaluator cuts
    whole = score_of(logits, chunk=100)
    assert whole["score"] == pytest.approx(np.mean(parts)) and whole["score_std"] == pytest.approx(np.std(parts))
    assert score_of(logits, chunk=100, batch=7) == pytest.approx(whole, rel=1e-12)
    ranks = [InceptionScore(230, 5, 100) for _ in range(2)]
    ranks[0].update(logits[:111], torch.arange(111))
    ranks[1].update(logits[111:], torch.arange(111, 230))
    assert ranks[0].compute(lambda state: state + ranks[1].state()) == pytest.approx(whole, rel=1e-12)


# --- Frechet distance


def gaussian(features: Tensor):
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics.compute()


def test_frechet_equals_torch_fidelity_and_torchmetrics_on_the_same_features() -> None:
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    image_fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = cloud(300, 24, 1).double(), 1.3 * cloud(250, 24, 2, 0.2).double()
    statistics = [metric_fid.fid_features_to_statistics(each) for each in (a, b)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(expected, rel=1e-10)
    theirs = image_fid._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()).item()
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(theirs, rel=1e-10)


def test_frechet_of_more_dimensions_than_features_equals_the_distance_within_their_span() -> None:
    """30 features a set in 200 dimensions: both lie in the first 40 coordinates of some basis, where numpy's own
    eigenvalues of A B are well defined."""
    rotation = torch.linalg.qr(cloud(200, 200, 0).double()).Q
    a, b = (torch.zeros(30, 200, dtype=torch.float64) for _ in range(2))
    a[:, :40], b[:, :40] = cloud(30, 40, 1), 0.7 * cloud(30, 40, 2, 0.5)
    small = [gaussian(each[:, :40]) for each in (a, b)]
    product = small[0].covariance.numpy() @ small[1].covariance.numpy()
    values = np.sort(np.linalg.eigvals(product).real)[-29:]  # those of the other 11 are zero up to round-off
    root = np.sqrt(values).sum()
    expected = (small[0].mean - small[1].mean).square().sum().item() - 2 * root
    expected += sum(each.covariance.trace().item() for each in small)
    assert frechet_distance(gaussian(a @ rotation), gaussian(b @ rotation)) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_few_features_does_not_depend_on_their_order() -> None:
    """Roots of eigenvalues that are zero up to round-off moved the eighth digit."""
    a, b = 5 * cloud(40, 90, 1), cloud(60, 90, 2)
    expected = frechet_distance(gaussian(a), gaussian(b))
    for seed in range(3):
        statistics = FeatureStatistics(90)
        for part in a[torch.randperm(40, generator=torch.Generator().manual_seed(seed))].split(3 + seed):
            statistics.update(part)
        assert frechet_distance(statistics.compute(), gaussian(b)) == pytest.approx(expected, rel=1e-11)


# --- kernel distance


def test_the_kernel_distance_equals_torch_fidelity_and_torchmetrics_on_all_pairs() -> None:
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    image_kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = cloud(120, 16, 1).double(), cloud(120, 16, 2, 0.1).double()
    options = {"kid_subsets": 1, "kid_subset_size": 120, "verbose": False}  # one subset: all of them
    expected = metric_kid.kid_features_to_metric(a, b, **options)["kernel_inception_distance_mean"]
    found = kernel_distance(a, b)
    assert found["kernel_distance"] == pytest.approx(expected, rel=1e-9)
    assert found["kernel_distance"] == pytest.approx(image_kid.poly_mmd(a, b).item(), rel=1e-9)


def test_the_kernel_distance_of_sets_of_two_sizes_by_its_definition_and_in_blocks() -> None:
    a, b = cloud(9, 4, 1).double(), cloud(6, 4, 2, 1).double()

    def mean(x: Tensor, y: Tensor, same: bool) -> float:
        values = [(float(p @ q) / 4 + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if not same or i != j]
        return sum(values) / len(values)

    found = kernel_distance(a, b)
    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert found["kernel_distance"] == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(a, b, block=4) == pytest.approx(found, rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_standard_error_is_the_deviation_of_repeated_draws(shift: float) -> None:
    """For equal distributions, where the plain jackknife is a factor of 1.4 too large, and for different ones."""
    draws = [kernel_distance(cloud(80, 8, 2 * i, shift), cloud(60, 8, 2 * i + 1)) for i in range(150)]
    spread = np.std([draw["kernel_distance"] for draw in draws])
    told = np.sqrt(np.mean([draw["kernel_distance_error"] ** 2 for draw in draws]))
    assert told == pytest.approx(spread, rel=0.2)
    if not shift:
        mean = np.mean([draw["kernel_distance"] for draw in draws])
        assert abs(mean) < 4 * spread / math.sqrt(150), "unbiased"


# --- precision, recall, density, coverage


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_and_coverage_equal_prdc_exactly(shift: float, k: int, capsys) -> None:
    prdc = pytest.importorskip("prdc")
    real, fake = cloud(210, 12, 0), 0.9 * cloud(170, 12, 1, shift)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), k)
    found = precision_recall(real, fake, k)
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-15)
    assert precision_recall(real, fake, k, block=37) == found


def test_precision_and_recall_equal_torch_fidelitys() -> None:
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    real, fake = cloud(150, 6, 0).double(), cloud(130, 6, 1, 0.7).double()
    precision, recall = metric_prc.calculate_precision_recall_full(fake, real)
    found = precision_recall(real, fake)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), abs=1e-6)  # theirs are float32


def test_precision_recall_by_hand() -> None:
    """On a line with k = 1: real balls [0, 2], [0, 2], [-2, 10] wide, fakes in one, in none."""
    real, fake = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[1.5], [7.0], [30.0]])
    assert radii(real, 1).tolist() == [1, 1, 9]
    found = precision_recall(real, fake, 1)
    assert found["precision"] == pytest.approx(2 / 3)  # 7 lies on the ball of 4, 1.5 in two
    assert found["recall"] == 1  # 0, 1 and 4 lie within 5.5 of 1.5
    assert found["density"] == pytest.approx(2 / 3)  # 1.5 in the balls of 1 and 4; on the border does not count
    assert found["coverage"] == pytest.approx(2 / 3)


def test_too_few_and_unequal_features_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(cloud(3, 2, 0), cloud(9, 2, 1))
    with pytest.raises(ValueError, match="4 features"):
        kernel_distance(cloud(3, 2, 0), cloud(9, 2, 1))
    for metric in (precision_recall, kernel_distance):
        with pytest.raises(ValueError, match="of one d"):
            metric(cloud(9, 2, 0), cloud(9, 3, 1))
    with pytest.raises(ValueError, match="no images"):
        InceptionScore(4, 3).compute()


def test_distances_stay_at_zero_or_above_far_from_the_origin() -> None:
    far = cloud(20, 3, 0).double() + 1e7
    assert squared_distances(far, far).min() >= 0
