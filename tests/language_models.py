"""What tests of the study of understanding share: captions, a small frozen language model, and features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from captioned import write_captioned

from fqgan.config import LanguageConfig, ProjectorConfig, TrainConfig
from fqgan.lab.understanding.banks import MapBank, ScaledFeatures, scaled_features
from fqgan.lab.understanding.captions import CaptionSet, open_captions
from fqgan.lab.understanding.language import LanguageModel, load_language_model
from fqgan.lab.understanding.tiny import build_network, build_tokenizer

QUICK = TrainConfig(
    batch=8,
    steps=6,
    precision="float32",
    device="cpu",
    log_every=2,
    image_every=0,
    validate_every=0,
    checkpoint_every=2,
)
SMALL = LanguageConfig(width=32, depth=2, heads=2, min_count=1)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioned(tmp_path_factory.mktemp("captioned") / "set", train=24, test=8)


@pytest.fixture(scope="module")
def captions(captioned: Path) -> CaptionSet:
    return open_captions(str(captioned))


@pytest.fixture(scope="module")
def phi(captions: CaptionSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Phi of some thousand weights and a tokenizer of words."""
    folder = tmp_path_factory.mktemp("phi")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(captions, 1)
    network = build_network(SMALL, tokenizer)
    with torch.no_grad():  # far enough from each other that rounding decides nothing
        network.get_output_embeddings().weight.normal_(0, 1)  # pyright: ignore
    network.save_pretrained(folder)  # pyright: ignore
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def language(phi: Path) -> LanguageModel:
    return load_language_model(phi, "<image>\n")


def vectors(count: int, positions: int = 6) -> torch.Tensor:
    return torch.randn(count, positions, 32, generator=torch.Generator().manual_seed(3))


def features(count: int, channels: int = 5, positions: int = 6) -> ScaledFeatures:
    bank = MapBank(np.random.default_rng(1).normal(2, 3, (count, positions, channels)).astype(np.float32), (2, 3))
    return scaled_features(ProjectorConfig(), bank, bank)
