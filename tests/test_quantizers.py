"""A quantizer is a class and a line in the registry: training, checkpoints, extraction and optimizers only ask it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import fqgan
from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.commands.train_tokenizer import COMMAND
from fqgan.config import FactorConfig, OptimizerConfig, TokenizerConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.data.tokens import TokenStore
from fqgan.engine.muon import hidden_matrices
from fqgan.engine.optim import make_optimizer
from fqgan.engine.run import read_stats
from fqgan.models.released.layouts import to_released
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.quantizers import QUANTIZERS, make_quantizer
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer
from fqgan.tokenizer.task import train_tokenizer


class SignQuantizer(Quantizer):
    """A bit a dimension, without a table (LFQ, Yu et al. 2024)."""

    unit_length = True

    def __init__(self, codebook_size: int, code_dim: int, *options: Any):
        super().__init__(codebook_size, code_dim, *options)
        if codebook_size != 2**code_dim:
            raise UserError(f"quantizer sign has 2^code_dim codes: {2**code_dim}, not {codebook_size}")

    def forward(self, z: Tensor, entropy: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            features = F.normalize(z.float(), dim=1)
            codes = ((features > 0) << self._bits(z)).sum(1)
            return Quantized(codes, features, self.embed(codes), features.new_zeros(()), self.gradient)

    def embed(self, codes: Tensor) -> Tensor:
        return (2 * (codes[:, None] >> self._bits(codes) & 1) - 1) * self.code_dim**-0.5

    def _bits(self, like: Tensor) -> Tensor:
        return torch.arange(self.code_dim, device=like.device)[:, None, None]


class WordsQuantizer(SignQuantizer):
    """With a table that is called as nothing else is, and a map behind it; both learn by gradient."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.words = nn.Parameter(torch.randn(self.codebook_size, self.code_dim))
        self.turn = nn.Linear(self.code_dim, self.code_dim)

    def embed(self, codes: Tensor) -> Tensor:
        return F.normalize(self.turn(self.words[codes]), dim=3).permute(0, 3, 1, 2)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZERS, "sign", SignQuantizer)
    monkeypatch.setitem(QUANTIZERS, "words", WordsQuantizer)


@pytest.fixture
def config(tiny: TokenizerRunConfig) -> TokenizerRunConfig:
    """Three factors, each with another quantizer."""
    factors = (
        FactorConfig("visual", 16, 4, 0, quantizer="sign"),
        FactorConfig("middle", 16, 4, 0, quantizer="words"),
        FactorConfig("semantic", 64, 4, 1),
    )
    train = {"steps": 4, "ema_decay": 0.9}
    return child(tiny, model={"factors": factors}, train=train, quantizer={"gradient": "rotation"})


def alone(config: TokenizerConfig, quantizer: str) -> TokenizerConfig:
    """With one factor, of this quantizer."""
    return replace(config, factors=(FactorConfig("visual", 16, 4, 1, quantizer=quantizer),))


def test_the_toy_gives_back_what_it_chose() -> None:
    quantizer = make_quantizer(FactorConfig("visual", 16, 4, quantizer="sign"))
    z = torch.randn(2, 4, 3, 5)
    out = quantizer(z)
    assert torch.equal(quantizer.encode(out.features), out.codes)
    assert torch.equal(quantizer.embed(out.codes), out.embeddings)
    assert torch.equal(out.embeddings > 0, z > 0) and out.codes.unique().numel() > 8


def test_training_loading_export_and_extraction(config: TokenizerRunConfig, tmp_path: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    train_tokenizer(config, run)
    lines = read_stats(run)
    assert len(lines) == 4 and lines[-1]["codebook_loss"] > 0 and lines[-1]["visual_usage"] > 0
    tokenizer = fqgan.load_tokenizer(run)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = tokenizer.encode(images)
    sizes = [quantizer.codebook_size for quantizer in tokenizer.quantizers]
    assert sizes == [16, 16, 64] and tokenizer.decode(codes).shape == images.shape
    for vectors, features in zip(tokenizer.embed(codes), tokenizer.features(images), strict=True):
        assert vectors.shape == features.shape
    again = fqgan.load_tokenizer(fqgan.save_tokenizer(tokenizer, tmp_path / "exported"))
    assert again.config.factors[0].quantizer == "sign" and torch.equal(again.encode(images), codes)
    main(["extract", str(run), "--data", config.data.source, "--out", str(store), "--workers", "0"])
    assert TokenStore.open(store).codebook_sizes == (16, 16, 64)


def test_a_run_of_several_quantizers_resumes_to_the_bit(config: TokenizerRunConfig, tmp_path: Path) -> None:
    """Only the factor that has a codebook is kept."""
    config = child(config, quantizer={"ema_decay": 0.8, "restart_after": 1, "kmeans_iterations": 2})
    for name, stops in (("straight", (4,)), ("resumed", (2, 4))):
        for steps in stops:
            train_tokenizer(child(config, train={"steps": steps}), tmp_path / name)
    a, b = (
        {file.stem: load_file(file) for file in (tmp_path / name / "checkpoints/step-00000004").glob("*.safetensors")}
        for name in ("straight", "resumed")
    )
    assert {name.partition("/")[0] for name in a["extra"]} == {"2"}
    assert a.keys() == b.keys()
    assert [f"{f}/{n}" for f in a for n in a[f] if not torch.equal(a[f][n], b[f][n])] == []
    assert "semantic_restarted" in read_stats(tmp_path / "resumed")[0]


def test_muon_leaves_every_table_to_adam(tiny: TokenizerRunConfig) -> None:
    """Whatever it is called, and whatever else the quantizer learns."""
    shape = replace(alone(tiny.model, "words"), factors=(FactorConfig("visual", 2**16, 16, 1, quantizer="words"),))
    model = FactorizedTokenizer(shape)
    quantizer = model.quantizers[0]
    assert min(min(parameter.shape) for parameter in quantizer.parameters() if parameter.ndim > 1) == 16
    taken = {id(parameter) for parameter in hidden_matrices(model)}
    assert taken and not any(id(parameter) in taken for parameter in quantizer.parameters())
    model.train()
    out = model(torch.rand(2, 3, 32, 32) * 2 - 1)
    out.quantized[0].codebook_loss.backward()
    assert isinstance(quantizer, WordsQuantizer)
    used, before = torch.unique(out.quantized[0].codes), quantizer.words.detach().clone()
    make_optimizer(model, OptimizerConfig("muon", lr=0.01)).step()
    moved = (quantizer.words.detach() - before).abs()
    torch.testing.assert_close(moved[used].max(), torch.tensor(0.01), rtol=0.01, atol=0)  # Adam's first step
    moved[used] = 0
    assert not moved.any()


@pytest.mark.parametrize("name", ["sign", "words"])
def test_the_released_layout_has_one_quantizer(tiny: TokenizerRunConfig, name: str) -> None:
    shape = replace(tiny.model, stem=1, channel_multipliers=(1, 2, 2))
    shape = replace(alone(shape, name), factors=(FactorConfig("visual", 16, 4, 0, quantizer=name),))
    with pytest.raises(UserError, match=rf"cannot express model\.factors\.0\.quantizer {name}: it stands for vq"):
        to_released(FactorizedTokenizer(shape).state_dict(), shape)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (
            {"quantizer": "signs"},
            "factor visual: unknown quantizer 'signs'; did you mean 'sign'? (quantizers: vq, ",
        ),
        (
            {"quantizer": "x"},
            "factor visual: unknown quantizer 'x' (quantizers: vq, ",
        ),
        ({"quantizer": "sign", "codebook_size": 17}, "quantizer sign has 2^code_dim codes: 16, not 17"),
    ],
)
def test_a_quantizer_that_cannot_be_is_refused_first(
    tiny: TokenizerRunConfig, tmp_path: Path, factor: dict[str, str], message: str
) -> None:
    factors = tuple(replace(each, **factor) for each in tiny.model.factors)
    config = child(tiny, model={"factors": factors}, data={"source": "missing"})
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        train_tokenizer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["ema_decay", "restart_after", "kmeans_iterations"])
def test_what_keeps_codebooks_needs_one(tiny: TokenizerRunConfig, tmp_path: Path, option: str) -> None:
    model = {"factors": alone(tiny.model, "sign").factors}
    config = child(tiny, model=model, quantizer={option: {"ema_decay": 0.9}.get(option, 3)})
    with pytest.raises(UserError, match=rf"quantizer\.{option} needs a codebook, and no factor's quantizer has one"):
        train_tokenizer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_name_is_a_setting_and_older_files_mean_vq() -> None:
    config, _ = COMMAND.parse(["dual-ds16", "--run", "x", "--model.factors.0.quantizer", "vq"])
    assert config == TokenizerRunConfig()
    config, _ = COMMAND.parse(["dual-ds16", "--run", "x", "--model.factors.1.quantizer", "sign"])
    assert [factor.quantizer for factor in config.model.factors] == ["vq", "sign"]
    content = schema.to_dict(TokenizerRunConfig())
    for factor in content["model"]["factors"]:
        del factor["quantizer"]
    assert schema.from_dict(TokenizerRunConfig, content) == TokenizerRunConfig()
