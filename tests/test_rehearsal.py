"""What runs on a GPU, rehearsed without one: fake tensors take the device `cuda`, refuse mixed devices, and have no
values, so that whatever would make a GPU wait for one (`.item()`, a tensor as a condition) fails. Presets are at full
size, with their own teachers and perceptual distances.

The autograd engine needs a driver for `cuda`, even of fake tensors: backward passes are rehearsed on the CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rehearsal import BATCH, NothingWaits, generator_of, moved, rehearsed, sampler_of, under_way
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fqgan.config import TokenizerRunConfig, presets
from fqgan.config.evaluation import Measuring
from fqgan.config.presets import child
from fqgan.data.sources import ImageSource, open_source
from fqgan.engine.distributed import World
from fqgan.evaluation.collect import FeatureCollector
from fqgan.metrics.psnr import PSNR
from fqgan.metrics.ssim import SSIM
from fqgan.nets.architectures import blank_networks
from fqgan.nets.measuring import FeatureNetwork, Features
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import Batch, TokenizerTask

pytest.importorskip("timm")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
PAPER = ["dual-ds16", "triple-ds8", "vqgan-ds16-32k"]


@pytest.fixture(scope="module")
def source(pictures: Path) -> ImageSource:
    return open_source(str(pictures))


def images_for(config: TokenizerRunConfig, device: str = "cuda") -> Tensor:
    return torch.zeros(BATCH, 3, config.model.image_size, config.model.image_size, device=device)


@contextmanager
def training(name: str, source: ImageSource, device: str = "cuda") -> Iterator[tuple[TokenizerTask, Batch]]:
    """A preset's task with the GAN and all else under way, and a batch, on fake tensors."""
    config = presets.get(name)
    gan = {"start": 0, "lecam_weight": 0.1, "r1_weight": 1.0 if device == "cpu" else 0.0, "adaptive": device == "cpu"}
    config = child(config, discriminator=gan, quantizer={"restart_after": 100}, train={"channels_last": "on"})
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    with rehearsed(), patch.object(nn.Module, "to", moved):
        with place:
            perceptual, teachers = blank_networks(config, place)
            task = TokenizerTask(config, World(0, 1, place), source, None, teachers, perceptual)
        yield task, Batch(images_for(config, device))


def losses(task: TokenizerTask, batch: Batch) -> Iterator[Tensor]:
    """Of both phases. All that is logged is a scalar, too."""
    for phase in task.phases:
        loss, terms = phase.loss(phase.network.train(), batch)
        for each in (loss, *terms.values()):
            assert each.device == batch.images.device and each.is_floating_point() and not each.shape
        assert loss.dtype == torch.float32
        yield loss


@pytest.mark.parametrize("name", PAPER)
def test_a_tokenizer_trains_and_encodes_on_a_gpu(name: str, source: ImageSource) -> None:
    """Losses with autocast and all that follows an update but for the update, then codes of a frozen model in bf16."""
    with training(name, source) as (task, batch):
        with NothingWaits():
            assert len([*losses(task, batch)]) == 2
            task.after_step()
        model, k, side = task.model.eval(), len(task.config.model.factors), task.config.model.grid
        for model.precision in ("float32", "bf16"):  # fake parameters cannot change in place, as `set_precision` asks
            codes = model.encode(batch.images, values=False)
            assert codes.device.type == "cuda" and codes.dtype == torch.int64 and codes.shape == (BATCH, k, side, side)
            pictures = model.decode(codes, values=False)
            assert pictures.device.type == "cuda" and pictures.dtype == torch.float32
            assert pictures.shape == batch.images.shape


@pytest.mark.parametrize("name", ["triple-ds16"])
def test_a_tokenizer_goes_backward(name: str, source: ImageSource) -> None:
    """On fake tensors of the CPU: every parameter gets a gradient of its own type."""
    with training(name, source, "cpu") as (task, batch):
        for phase, loss in zip(task.phases, losses(task, batch), strict=True):
            loss.backward()
            wrong = [n for n, p in phase.module.named_parameters() if p.grad is None or p.grad.dtype != p.dtype]
            assert wrong == []


@pytest.mark.parametrize(("name", "k"), [("far-base", 2), ("far-large", 3)])
def test_a_generator_learns_on_a_gpu(name: str, k: int) -> None:
    with rehearsed():
        with torch.device("cuda"):
            generator = generator_of(name, k)
            codes, labels = torch.zeros(BATCH, k, 16, 16, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
        generator.rotary(codes.device)  # made once
        with NothingWaits(), torch.autocast("cuda", torch.bfloat16):
            found = generator.loss(codes, labels)
        for each in (*found.cross_entropy, *found.accuracy):
            assert each.device.type == "cuda" and not each.shape


@pytest.mark.parametrize(("name", "k", "precision"), [("far-base", 2, "float32"), ("far-large", 3, "bf16")])
def test_a_sampler_steps_on_a_gpu(name: str, k: int, precision: str) -> None:
    """Steps of both kinds, guided and not, at the first and the last position, with every way to cut the draw."""
    with rehearsed():
        with torch.device("cuda"):
            generator = generator_of(name, k).eval().requires_grad_(False).set_precision(precision)
        sampler = sampler_of(generator, compiled=False)
        with NothingWaits():
            for t in (0, 255):
                rows, guided = under_way(sampler, t)
                assert bool(guided) == (t == 0)
                sampler._dynamic_step(rows, guided)
                sampler._static_step(sampler._key(rows, guided))
        assert sampler._codes.device.type == "cuda" and sampler._input.dtype == generator.sampling_dtype


def test_collectors_and_meters_follow_on_a_gpu() -> None:
    def read(images: Tensor) -> Features:
        pooled = images.float().mean((2, 3))
        return Features(pooled, pooled[:, :2], pooled)

    options: dict[str, Any] = {
        "weights": "",
        "resize": "",
        "genuine": False,
        "module": torch.nn.Identity(),
        "read": read,
    }
    network = FeatureNetwork("pixels", 3, 2, 3, **options)
    with FakeTensorMode(
        shape_env=ShapeEnv()
    ):  # every second image is taken by a mask, of which fake tensors know no count
        collector = FeatureCollector(network, range(4), Measuring().kept, "cuda")
        halves: list[Tensor] = []
        collector._half.update = halves.append
        seen = torch.zeros(BATCH, 3, 64, 64, device="cuda")
        for meter in (PSNR("cuda"), SSIM("cuda")):
            meter.update(seen, seen)
        collector.update(seen.to(torch.uint8), torch.arange(BATCH))
        assert halves[0].device.type == "cuda"


def test_a_tensor_that_stayed_behind_is_seen() -> None:
    """What the rehearsal is for: the same passes fail with one parameter on the CPU, or one look at a value."""
    config = presets.get("dual-ds16")
    with rehearsed():
        with torch.device("cuda"):
            model, images = FactorizedTokenizer(config.model), images_for(config)
        name, parameter = next(model.decoder.named_parameters())
        owner = model.decoder.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(torch.zeros(parameter.shape)))
        with pytest.raises(RuntimeError, match="device"):
            model(images)
    with rehearsed(), pytest.raises(Exception, match=r"_local_scalar_dense"):
        images_for(config).mean().item()
    with rehearsed(), NothingWaits():
        images = images_for(config)
        with pytest.raises(AssertionError, match="from the GPU"):
            images.cpu()
        with pytest.raises(AssertionError, match="to the GPU"):
            torch.zeros(2).to("cuda")
        torch.zeros(2).to("cuda", non_blocking=True)
