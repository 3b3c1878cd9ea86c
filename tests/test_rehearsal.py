"""What runs on a GPU, rehearsed without one: fake tensors take the device `cuda`, refuse mixed devices, and have no
values, so that whatever would make a GPU wait for one (`.item()`, a tensor as a condition) fails. Presets are at full
size.

The autograd engine needs a driver for `cuda`, even of fake tensors: backward passes are rehearsed on the CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from fqgan.config import GeneratorConfig, SamplingConfig, TokenizerRunConfig, presets
from fqgan.config.evaluation import Measuring
from fqgan.evaluation.collect import FeatureCollector
from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.generator.step import CachePosition
from fqgan.generator.transformer import rotary_table
from fqgan.metrics.psnr import PSNR
from fqgan.metrics.ssim import SSIM
from fqgan.metrics.usage import CodeUsage
from fqgan.nets.measuring import FeatureNetwork, Features
from fqgan.tokenizer.adversary import Adversary
from fqgan.tokenizer.losses import tokenizer_loss
from fqgan.tokenizer.model import FactorizedTokenizer

PAPER = ["dual-ds16", "dual-ds8", "triple-ds16", "triple-ds8", "vqgan-ds16", "vqgan-ds16-32k", "vqgan-ds8"]
BATCH = 2


class NothingLeaves(TorchDispatchMode):
    """Refuses copies from the GPU to the CPU, for which it would have to finish first."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        came = [each for each in args if isinstance(each, Tensor) and each.device.type == "cuda"]
        if came and isinstance(result, Tensor) and result.device.type == "cpu":
            raise AssertionError(f"{func} brings a tensor from the GPU")
        return result


@contextmanager
def rehearsed(device: str = "cuda") -> Iterator[None]:
    """Tensors that are made here are fake ones on `device`; nothing may wait for it."""
    rotary_table.cache_clear()  # of an earlier rehearsal's tensors
    with FakeTensorMode(), torch.device(device), NothingLeaves() if device == "cuda" else nullcontext():
        yield
    rotary_table.cache_clear()


@pytest.fixture(autouse=True)
def autocasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast on `cuda` is on without one."""
    monkeypatch.setattr("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)


def images_for(config: TokenizerRunConfig) -> Tensor:
    return torch.zeros(BATCH, 3, config.model.image_size, config.model.image_size)


def losses(config: TokenizerRunConfig, model: FactorizedTokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of both phases, with all terms of the preset and the GAN under way."""
    options = replace(config.discriminator, start=0)
    adversary = Adversary(options, config.model.image_size)
    with torch.autocast(images.device.type, torch.bfloat16):
        output = model(images, entropy=True)
        gan = adversary.generator_term(output.reconstruction, 10)
    if options.adaptive:
        gan = None if images.device.type == "cuda" else gan  # it differentiates, for which a driver is needed
    targets = [None if each is None else torch.zeros_like(each) for each in output.predictions]
    distance = (output.reconstruction - images).abs().mean((1, 2, 3)) if config.loss.perceptual_weight else None
    total, _ = tokenizer_loss(output, images, config.loss, perceptual=distance, targets=targets, gan=gan)
    with torch.autocast(images.device.type, torch.bfloat16):
        real, fake = adversary.discriminator(images, output.reconstruction.detach())
    return total, adversary.discriminator_loss(real, fake, images, 10)[0]


@pytest.mark.parametrize("name", PAPER)
def test_a_tokenizer_goes_forward_on_a_gpu(name: str) -> None:
    config = presets.get(name)
    k, side = len(config.model.factors), config.model.grid
    with rehearsed():
        model, images = FactorizedTokenizer(config.model, gradient=config.quantizer.gradient), images_for(config)
        for loss in losses(config, model, images):
            assert loss.device.type == "cuda" and loss.dtype == torch.float32 and not loss.shape
        codes = model.encode(images, values=False)
        assert codes.device.type == "cuda" and codes.dtype == torch.int64 and codes.shape == (BATCH, k, side, side)
        pictures = model.decode(codes, values=False)
        assert pictures.device.type == "cuda" and pictures.shape == images.shape
        for meter, own in zip(
            [CodeUsage(q.codebook_size, "cuda") for q in model.quantizers], codes.unbind(1), strict=True
        ):
            meter.update(own)


@pytest.mark.parametrize("name", PAPER)
def test_a_tokenizer_encodes_in_bf16_on_a_gpu(name: str) -> None:
    config = presets.get(name)
    with rehearsed():
        model = FactorizedTokenizer(config.model).eval().requires_grad_(False)
        model.precision = "bf16"  # fake parameters cannot change their layout in place, as `set_precision` asks for
        codes = model.encode(images_for(config), values=False)
        pictures = model.decode(codes, values=False)
        assert codes.device.type == "cuda" and pictures.dtype == torch.float32


@pytest.mark.parametrize("name", PAPER)
def test_a_tokenizer_goes_backward(name: str) -> None:
    """On fake tensors of the CPU: every parameter gets a gradient of its own type."""
    config = presets.get(name)
    with rehearsed("cpu"):
        model = FactorizedTokenizer(config.model, gradient=config.quantizer.gradient)
        first, second = losses(config, model, images_for(config))
        first.backward()
        second.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.dtype != p.dtype] == []


def generator_of(name: str, k: int) -> FAR:
    model: GeneratorConfig = presets.get_generator(name).model
    return FAR(replace(model, codebook_sizes=(16384,) * k, grid=(16, 16), num_classes=1000))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", ["far-base", "far-large"])
def test_a_generator_learns_on_a_gpu(name: str, k: int) -> None:
    with rehearsed():
        generator = generator_of(name, k)
        codes, labels = torch.zeros(BATCH, k, 16, 16, dtype=torch.int64), torch.zeros(BATCH, dtype=torch.int64)
        with torch.autocast("cuda", torch.bfloat16):
            found = generator.loss(codes, labels)
        for each in (*found.cross_entropy, *found.accuracy):
            assert each.device.type == "cuda" and not each.shape


class Scales:
    """Guidance scales of half of the positions. Before the first step a sampler asks for their values, on the CPU, and
    fake tensors have none."""

    def __init__(self, rows: int, k: int):
        self.shape = rows, k

    def to(self, device: torch.device) -> Tensor:
        return torch.ones(self.shape, device=device)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.repeat([[2.0], [1.0]], self.shape[0] // 2, 0))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("name", "k"), [("far-base", 2), ("far-large", 3)])
def test_a_sampler_steps_on_a_gpu(name: str, k: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of both kinds, guided and not, at the first and the last position, with every way to cut the draw."""
    options = SamplingConfig(cfg_scale=(2.0,), cfg_interval=(0.0, 0.5), top_k=(600,), top_p=(0.9,))
    with rehearsed():
        monkeypatch.setattr("fqgan.generator.sampler.guidance_scales", lambda config, rows, k: Scales(rows, k))
        generator = generator_of(name, k).eval().requires_grad_(False).set_precision(precision)
        sampler = Sampler(generator, BATCH, options, static=True, compiled=False)
        for t in (0, 255):
            sampler._step(CachePosition(t, t + 1), BATCH, guided=t == 0)
            sampler._static_step(*sampler._key(t))
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
        model, images = FactorizedTokenizer(config.model), images_for(config)
        name = next(name for name, _ in model.decoder.named_parameters())
        owner = model.decoder.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(torch.zeros(owner.weight.shape, device="cpu")))
        with pytest.raises(RuntimeError, match="device"):
            model(images)
    with rehearsed(), pytest.raises(Exception, match=r"_local_scalar_dense"):
        images_for(config).mean().item()
    with rehearsed(), pytest.raises(AssertionError, match="from the GPU"):
        images_for(config).cpu()
