"""The features of sets, the networks that give them, and the names of their scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fqgan.base.errors import UserError
from fqgan.config.evaluation import Measuring
from fqgan.data.sources import Request, open_source
from fqgan.data.sources.npz import NpzSource
from fqgan.engine.distributed import World
from fqgan.evaluation.collect import CentreCrops, FeatureCollector, collect
from fqgan.evaluation.scores import set_scores
from fqgan.nets.measuring import FeatureNetwork, Features, load_network


def pixels_network(dim: int = 12) -> FeatureNetwork:
    """Features that are exact whatever the batch: some pixels."""

    def read(images: torch.Tensor) -> Features:
        values = images.float().flatten(1)
        return Features(values[:, :: values.shape[1] // dim][:, :dim], values[:, :3], values[:, :4] / 50)

    options = {"weights": "none", "resize": "none", "genuine": False, "module": torch.nn.Identity(), "read": read}
    return FeatureNetwork("pixels", dim, 3, 4, **options)


def reading(batch: int) -> CentreCrops:
    return CentreCrops(Measuring(batch=batch, workers=0, kept=99), 24)


def test_a_set_gives_the_same_numbers_for_any_batch_and_order(here: Path) -> None:
    network, world = pixels_network(), World(0, 1, torch.device("cpu"))
    real = collect(network, open_source("real"), reading(5), world)[0]
    source = open_source("fake")
    whole = set_scores(real, collect(network, source, reading(12), world)[0], network)
    assert {"frechet", "frechet_half", "frechet_spatial", "score", "kernel_distance", "coverage"} <= set(whole)
    for batch in (1, 5):
        other = collect(network, source, reading(batch), world)[0]
        assert set_scores(real, other, network) == pytest.approx(whole, rel=1e-9)
    collector = FeatureCollector(network, range(len(source)), 99, "cpu")
    for index in (7, 0, 11, 3, 5, 1, 2, 4, 6, 10, 8, 9):
        image = torch.from_numpy(np.array(source.read(index)[0])).permute(2, 0, 1)
        collector.update(image[None], torch.tensor([index]))
    assert set_scores(real, collector.compute(), network) == pytest.approx(whole, rel=1e-9)


def test_half_of_the_samples_and_what_is_kept_have_all_classes_that_take_turns() -> None:
    """Ten classes of ten shades in turn, as `evaluate generator` draws them: every second one knows five."""
    count, network = 2000, pixels_network(3)
    collector = FeatureCollector(network, range(count), count // 10, "cpu")
    shades = 20 * (torch.arange(count) % 10)
    collector.update(shades[:, None, None, None].expand(-1, 3, 4, 4).to(torch.uint8), torch.arange(count))
    found = collector.compute()
    assert found.half is not None and found.half.count == count // 2 and found.features is not None
    error = 57.4 / (count // 2) ** 0.5  # of a mean of half of them; the deviation of ten shades is 57.4
    assert abs(float(found.half.mean[0]) - 90) < 4 * error
    assert set(found.features[:, 0].tolist()) == set(range(0, 200, 20))


def test_features_that_are_not_finite_stop_the_evaluation(here: Path) -> None:
    network = pixels_network(3)
    collector = FeatureCollector(network, range(4), 4, "cpu")
    object.__setattr__(network, "read", lambda x: Features(torch.tensor([[1.0, torch.nan, 0.0]]), None, None))
    collector.update(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([2]))
    with pytest.raises(UserError, match="features of 1 of 4 pictures are not finite"):
        collector.compute()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inceptoin", "unknown features 'inceptoin'; did you mean 'inception'?"),
        ("classifier:nowhere", "nowhere is no run or checkpoint of fqgan train-classifier"),
        ("inception=", "unknown features 'inception='"),
        ("timm:resnet18=nowhere.pth", "nowhere.pth does not exist"),
    ],
)
def test_unknown_networks_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_network(name)
    assert message in str(caught.value)


def test_only_fids_inception_gives_numbers_of_that_name(here: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    names = {"fid", "fid_half", "sfid", "inception_score", "inception_score_std"}
    for genuine in (False, True):
        network = replace(pixels_network(), genuine=genuine)
        real, fake = (collect(network, open_source(name), reading(5), world)[0] for name in ("real", "fake"))
        assert (names < set(set_scores(real, fake, network))) == genuine


# --- .npz


def test_an_npz_is_mapped_and_read_by_index(here: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    np.savez("a.npz", arr_0=pixels, arr_1=np.arange(5))
    source = NpzSource(Path("a.npz"), Request("a"))
    assert isinstance(source._pixels, np.memmap)
    for index in (4, 0):
        image, label = source.read(index)
        assert np.array_equal(np.asarray(image), pixels[index]) and label == index
    np.savez("b.npz", arr_0=pixels, arr_1=np.arange(4))
    with pytest.raises(UserError, match="arr_1 must be 5 whole numbers"):
        NpzSource(Path("b.npz"), Request("b"))
    np.savez("c.npz", arr_0=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="objects"):
        NpzSource(Path("c.npz"), Request("c"))
