"""FID's Inception against torch-fidelity's and torchmetrics', on the same random weights and the same images."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from inception_weights import save_random_inception
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.files import file_sha256
from fqgan.metrics.frechet import FeatureStatistics, frechet_distance
from fqgan.metrics.inception_score import InceptionScore
from fqgan.nets import inception
from fqgan.nets.inception import Inception, load_inception, resize_tf1
from fqgan.nets.measuring import load_network

port = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_inception(tmp_path_factory.mktemp("inception") / "inception.pth")


@pytest.fixture(scope="module")
def network(weights: Path) -> Inception:
    return load_inception(str(weights))[0]


def images(count: int, size: int, seed: int, smooth: int = 1) -> Tensor:
    coarse = torch.rand(count, 3, size // smooth, size // smooth, generator=torch.Generator().manual_seed(seed))
    return (255 * torch.nn.functional.interpolate(coarse, size)).to(torch.uint8)


def reference(weights: Path, *names: str):
    return port.FeatureExtractorInceptionV3("reference", list(names), feature_extractor_weights_path=str(weights))


@pytest.mark.parametrize("size", [(32, 32), (70, 51), (299, 299), (598, 400)])
def test_the_resize_is_tensorflow_1s(size: tuple[int, int]) -> None:
    compat = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    expected = compat.interpolate_bilinear_2d_like_tensorflow1x(x, (299, 299), align_corners=False)
    torch.testing.assert_close(resize_tf1(x, 299), expected, rtol=0, atol=1e-4)


def test_every_output_is_torch_fidelitys(weights: Path, network: Inception) -> None:
    theirs = reference(weights, "2048", "logits_unbiased", "logits")
    spatial: list[Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, output: spatial.append(output[:, :7]))
    x = images(3, 40, 0)
    pooled, logits, biased = theirs(x)
    with torch.inference_mode():
        ours = network(x)
    for found, expected in (
        (ours.pooled, pooled),
        (ours.logits, logits),
        (ours.logits + network.bias, biased),
        (ours.spatial, spatial[0].permute(0, 2, 3, 1).flatten(1)),  # NHWC, as the statistics of ADM's evaluator
    ):
        assert found.shape == expected.shape
        assert (found - expected).norm() < 3e-6 * expected.norm()
    assert ours.spatial.shape == (3, inception.SPATIAL_DIM)


def fid(a: Tensor, b: Tensor) -> float:
    statistics = [FeatureStatistics(a.shape[1]) for _ in range(2)]
    for each, features in zip(statistics, (a, b), strict=True):
        for part in features.split(19):
            each.update(part)
    return frechet_distance(*(each.compute() for each in statistics))


@pytest.mark.slow
def test_fid_of_the_same_images_equals_torch_fidelity_and_torchmetrics(weights: Path, network: Inception) -> None:
    """At the 64-dimensional tap, with more images than dimensions."""
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    image_fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = images(66, 32, 1), images(68, 48, 2, smooth=4)
    with torch.inference_mode():
        found = fid(*(torch.cat([network.stem(part).mean((2, 3)) for part in x.split(17)]) for x in (a, b)))
    theirs = reference(weights, "64")
    features = [torch.cat([theirs(part)[0] for part in x.split(17)]).double() for x in (a, b)]
    statistics = [metric_fid.fid_features_to_statistics(each) for each in features]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(expected, rel=1e-5)
    # its own resize filters (antialias=True), which is another protocol: 2 % off here
    options = {"feature": 64, "antialias": False, "feature_extractor_weights_path": str(weights)}
    metric = image_fid.FrechetInceptionDistance(**options)
    for x, real in ((a, True), (b, False)):
        for part in x.split(17):
            metric.update(part, real=real)
    assert found == pytest.approx(metric.compute().item(), rel=1e-5)


@pytest.mark.slow
def test_fid_and_inception_score_at_full_width_equal_torch_fidelitys(weights: Path, network: Inception) -> None:
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    a, b = images(12, 64, 1), images(12, 64, 2, smooth=8)
    theirs = reference(weights, "2048", "logits_unbiased")
    outputs = [[torch.cat(each) for each in zip(*(theirs(part) for part in x.split(6)), strict=True)] for x in (a, b)]
    statistics = [metric_fid.fid_features_to_statistics(pooled.double()) for pooled, _ in outputs]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    with torch.inference_mode():
        ours = [network(x) for x in (a, b)]
    assert fid(ours[0].pooled, ours[1].pooled) == pytest.approx(expected, rel=1e-4)
    score = InceptionScore(12, 1008, 6)
    score.update(ours[0].logits, torch.arange(12))
    expected = metric_isc.isc_features_to_metric(outputs[0][1], splits=2, shuffle=False)["inception_score_mean"]
    assert score.compute()["score"] == pytest.approx(expected, rel=1e-5)


# --- where the weights come from


def test_only_fids_weights_make_it_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of other weights must not be called FID."""
    other = load_network(f"inception={weights}")
    assert not other.genuine and other.name == "inception with other weights"
    monkeypatch.setattr(inception, "SHA256", other.weights[:8])
    right = load_network(f"inception={weights}")
    assert right.genuine and right.name == "inception" and right.weights == other.weights
    assert (right.dim, right.spatial_dim, right.num_classes) == (2048, 2023, 1008)


def test_the_cache_of_either_port_is_found_and_its_checksum_checked(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FQGAN_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    found = tmp_path / "checkpoints" / inception.FILES[1]
    found.symlink_to(weights)
    with pytest.raises(UserError, match=r"is damaged: its sha256 is [0-9a-f]{8}..., not 6726825d"):
        load_inception()
    monkeypatch.setattr(inception, "SHA256", file_sha256(weights)[:8])
    assert load_inception()[2]


@pytest.mark.parametrize("offline", [True, False])
def test_missing_weights_name_every_way_out(offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FQGAN_INCEPTION", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def unreachable(*arguments: object, **options: object) -> None:
        raise URLError("no way")

    monkeypatch.setattr(inception, "urlopen", unreachable)
    with pytest.raises(UserError) as caught:
        load_inception()
    for part in (inception.URL, "FQGAN_INCEPTION", "--features inception=FILE", "--features efficientnet-lite0"):
        assert part in str(caught.value)
    assert ("turned off" if offline else "no way") in str(caught.value)
    assert not (tmp_path / "hub" / "checkpoints" / inception.FILES[0]).exists()


def test_a_download_lands_in_the_cache(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FQGAN_INCEPTION", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(inception, "URL", weights.as_uri())
    with pytest.raises(UserError, match="the download failed: invalid hash value"):
        load_inception()
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())
    monkeypatch.setattr(inception, "SHA256", file_sha256(weights)[:8])
    assert load_inception()[2]
    assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == [inception.FILES[0]]


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: these are no weights of FID's Inception"):
        load_inception(str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match=r"nowhere\.pth does not exist"):
        load_inception(str(tmp_path / "nowhere.pth"))
