"""What tests of training a generator share: two token stores, and a tiny config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TRAINING
from stores import make_store

from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.config.presets import child, get_generator
from fqgan.tokenizer.model import FactorizedTokenizer


@pytest.fixture(scope="module")
def home(tiny: TokenizerRunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores `store` (12 images, two crops) and `held-out` (7, ten crops)."""
    torch.manual_seed(0)
    tokenizer = FactorizedTokenizer(tiny.model).eval()
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder / "store", tokenizer)
    make_store(folder / "held-out", tokenizer, images=7, seed=5, crops="ten")
    return folder


def small(home: Path, **changes: Any) -> GeneratorRunConfig:
    """Dropout, class dropout, accumulation, clipping and a moving average, all at once and tiny."""
    config = child(
        get_generator("far-tiny"),
        model={"width": 32, "depth": 2, "heads": 2, "mlp_multiple": 16},
        optimizer={"warmup_steps": 2, "schedule": "constant", "clip": 0.1},
        train={**TRAINING, "validate_every": 3, "image_every": 0, "sample_images": 3},
    )
    config = replace(config, data=str(home / "store"), validation=str(home / "held-out"))
    return child(config, **changes)
