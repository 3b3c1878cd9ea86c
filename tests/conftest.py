"""What tests share: a tiny tokenizer, made-up pictures, and the command line in this process."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of processes too, whatever starts them: more threads sum in another order
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub: a missing model costs 23 s of retries otherwise

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from foreign import TOY
from generators import paired
from PIL import Image
from sets import write_pictures

import fqgan
from fqgan.cli import main
from fqgan.config import FactorConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.generator.model import FAR, save_generator
from fqgan.generator.transformer import rotary_table
from fqgan.nets.efficientnet import load_efficientnet_lite0
from fqgan.tokenizer.model import FactorizedTokenizer

if TYPE_CHECKING:
    import httpx

    from fqgan.serve.engine import Engine

# asserts that tests share say what they compared, as those of the tests do
pytest.register_assert_rewrite("begun", "browsing", "faces", "packs", "remote_files", "reports")
torch.set_num_threads(1)  # small networks on more threads than free cores are 10 to 100 times as slow


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight pictures of 48x40 pixels: smooth gradients with noise."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:40, 0:48] / 40
    for i in range(8):
        waves = np.stack([np.sin((2 + i) * x + c) + np.cos((1 + i) * y - c) for c in range(3)], -1)
        pixels = 128 + 50 * waves + rng.normal(0, 6, waves.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(pictures: Path) -> TokenizerRunConfig:
    """Two steps of a dual tokenizer at 4x with some thousand weights: no teacher, no GAN, no perceptual distance."""
    return child(
        TokenizerRunConfig(),
        model={
            "image_size": 32,
            "stem": 2,
            "channels": 32,
            "channel_multipliers": (1, 2),
            "res_blocks": 1,
            "z_channels": 32,
            "adapter_head_dim": 32,
            "factors": (FactorConfig("visual", 32, 4, adapter_depth=0), FactorConfig("semantic", 16, 4, 1)),
        },
        data={"source": str(pictures), "workers": 0},
        loss={"perceptual": "none"},
        discriminator={"weight": 0.0},
        train={
            "batch": 4,
            "steps": 2,
            "precision": "float32",
            "device": "cpu",
            "log_every": 1,
            "image_every": 0,
            "validate_every": 0,
            "checkpoint_every": 1,
        },
    )


@pytest.fixture
def base(tiny: TokenizerRunConfig) -> TokenizerRunConfig:
    """Two factors of one dimension, one of them taught, with both regularisers."""
    taught = FactorConfig("semantic", 16, 4, 1, teacher="efficientnet-lite0@32")
    return child(
        tiny,
        model={
            "factors": (FactorConfig("visual", 32, 4, 1), taught),
            "feature_head_width": 32,
            "feature_head_depth": 1,
        },
        data={"validation": tiny.data.source},
    )


@pytest.fixture
def tokenizer(tiny: TokenizerRunConfig) -> FactorizedTokenizer:
    """An untrained tokenizer of the tiny model."""
    torch.manual_seed(0)
    return FactorizedTokenizer(tiny.model).eval()


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As `processes.IN_FLOAT64`, in this process."""
    kept = (rotary_table, load_efficientnet_lite0)
    for function in kept:
        function.cache_clear()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    for function in kept:
        function.cache_clear()


@pytest.fixture
def exported(tokenizer: FactorizedTokenizer, tmp_path: Path) -> Path:
    """The folder of the exported `tokenizer`."""
    return fqgan.save_tokenizer(tokenizer, tmp_path / "exported")


@pytest.fixture
def generator(tokenizer: FactorizedTokenizer) -> FAR:
    """An untrained generator of its codes."""
    return paired(tokenizer)


@pytest.fixture
def folder(generator: FAR, tmp_path: Path) -> Path:
    """The folder of the exported `generator`."""
    return save_generator(generator, tmp_path / "generator")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call it with a command line that must fail as a user's error: exit status 2 and one line, which it returns."""

    def call(*argv: object) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in argv])
        lines = capsys.readouterr().err.splitlines()
        assert status == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("fqgan: error: ")
        return lines[0]

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two sets of pictures, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FQGAN_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "real", 14, 0)
    write_pictures(tmp_path / "fake", 12, 1)
    return tmp_path


@pytest.fixture
def toys(here: Path) -> Path:
    """The working folder, with tokenizers of others and pictures in it."""
    (here / "toys.py").write_text(TOY)
    write_pictures(here / "small", 6, 2, size=16)
    return here


@pytest.fixture(scope="session")
def tool() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a file of tools/ by its name."""
    folder = str(Path(fqgan.__file__).parent.parent / "tools")
    sys.path.insert(0, folder)
    yield import_module
    sys.path.remove(folder)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system, or changes its options: mounted("size=8k")."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        remount = "remount," if disk.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(disk)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (subprocess.CalledProcessError, FileNotFoundError):
            pytest.skip("needs the right to mount a file system")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small models of `servers`, on disk."""
    from servers import write_models

    return write_models(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def running(models: Path) -> Iterator[tuple[str, Engine]]:
    """The address of a server of them, and its engine."""
    from servers import served, settings

    with served(settings(models)) as address:
        yield address


@pytest.fixture(scope="module")
def client(running: tuple[str, Engine]) -> Iterator[httpx.Client]:
    """Speaks to it."""
    import httpx

    with httpx.Client(base_url=running[0], timeout=60) as client:
        yield client
