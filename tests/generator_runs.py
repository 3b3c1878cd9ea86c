"""What tests of training a generator share: two token stores, a tiny config, and its command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import STEPS
from stores import make_store

from fqgan.base import schema
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
        train={
            "batch": 8,
            "micro_batch": 4,
            "steps": STEPS,
            "ema_decay": 0.9,
            "log_every": 1,
            "validate_every": 3,
            "image_every": 0,
            "checkpoint_every": 3,
            "keep_last": 3,
            "sample_images": 3,
            "precision": "float32",
            "device": "cpu",
        },
    )
    config = replace(config, data=str(home / "store"), validation=str(home / "held-out"))
    return child(config, **changes)


def command(config: GeneratorRunConfig, run: Path, *options: str) -> list[str]:
    file = run.with_suffix(".config.json")
    schema.save(config, file)
    return ["train-generator", "far-tiny", "--config", str(file), "--run", str(run), *options]
