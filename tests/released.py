"""Files of the released layouts: the recipe that fills their tensors from the names, and smaller models' files.

Provenance of the names, the recipe and the numbers in golden/: facts of the released FQGAN, FAR and LlamaGen files,
computed in float32 on a CPU.
"""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fqgan.config import FactorConfig, GeneratorConfig, TokenizerConfig
from fqgan.generator.model import FAR
from fqgan.models.released.layouts import to_released
from fqgan.tokenizer.model import FactorizedTokenizer

GOLDEN = Path(__file__).parent / "golden"
UNFILLED = (".codebook_used", ".running_mean", ".running_var", ".num_batches_tracked")

SMALL = TokenizerConfig(
    image_size=32,
    channels=32,
    channel_multipliers=(1, 2),
    res_blocks=1,
    z_channels=32,
    factors=(FactorConfig("visual", 64, 4, 1), FactorConfig("semantic", 32, 4, 2, "unknown", 16)),
)
"""A dual tokenizer that the released layout can express, with some hundred thousand weights."""


@cache
def keys() -> dict[str, dict[str, list[int]]]:
    """Layout -> tensor name -> shape."""
    return json.loads(gzip.decompress((GOLDEN / "released_keys.json.gz").read_bytes()))


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The recipe's tensor for a released name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    x = rng.standard_normal(size=shape, dtype=np.float32)
    if name.endswith("bias"):
        x = np.float32(0.1) * x
    elif len(shape) == 1:
        x = 1 + np.float32(0.1) * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(x.astype(np.float32))


def tensors(layout: str) -> dict[str, Tensor]:
    """All tensors of a layout, filled by the recipe."""
    return {name: _tensor(name, tuple(shape)) for name, shape in keys()[layout].items()}


def _tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if not name.endswith(UNFILLED):
        return filled(name, shape)
    return torch.ones(shape) if name.endswith(".running_var") else torch.zeros(shape)


def small(config: TokenizerConfig | GeneratorConfig = SMALL) -> dict[str, Tensor]:
    """The released tensors of another model than the released ones, filled by the recipe."""
    shapes = to_released(_class(config)(config).state_dict(), config)
    return {name: _tensor(name, tuple(tensor.shape)) for name, tensor in shapes.items()}


def write(path: Path, model: dict[str, Tensor], **entries: Any) -> Path:
    """A file as training left it."""
    args = argparse.Namespace(vq_model="VQ-16", image_size=256, lr=2e-4)
    torch.save({"model": model, "optimizer": {"state": {}}, "steps": 7, "args": args, **entries}, path)
    return path


def _class(config: TokenizerConfig | GeneratorConfig) -> type[FactorizedTokenizer] | type[FAR]:
    return FactorizedTokenizer if isinstance(config, TokenizerConfig) else FAR


def check_reconstruction(images: Tensor, golden: Any, limit: float) -> None:
    """Images of the given codes against every eighth pixel, mean and standard deviation of the original ones."""
    wanted = torch.from_numpy(golden["recon_stride8"])
    assert (images[:, :, ::8, ::8] - wanted).norm() / wanted.norm() < limit
    np.testing.assert_allclose([images.mean(), images.std()], golden["recon_mean_std"], rtol=1e-4)


def reference_images() -> Tensor:
    """The recipe's two images, (2, 3, 256, 256) in [-1, 1]."""
    yy, xx = np.mgrid[0:256, 0:256].astype(np.float32) / 255
    rng = np.random.Generator(np.random.PCG64(1234))
    waves = np.stack([np.sin(6 * xx + 3 * yy), np.cos(5 * yy - 2 * xx), np.sin(20 * xx * yy)])
    image = np.clip(0.7 * waves + 0.2 * rng.standard_normal((3, 256, 256), dtype=np.float32), -1, 1)
    return torch.from_numpy(np.stack([image, image[:, ::-1, ::-1]]).astype(np.float32))
