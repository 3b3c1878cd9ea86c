"""Factors that share one projection: product and residual quantization beside the paper's factorization."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_quantizer_kinds import FACTORS

import fqgan
from fqgan.base.errors import UserError
from fqgan.config import FactorConfig, TokenizerConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.data.tokens import TokenStore
from fqgan.engine.run import read_stats
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.quantizers import QUANTIZERS
from fqgan.tokenizer.task import train_tokenizer

RESIDUAL = [name for name, kind in QUANTIZERS.items() if kind.residual]
KINDS = [
    *((name, composition, False) for name in FACTORS for composition in ("factorized", "product")),
    *((name, "residual", shared) for name in RESIDUAL for shared in (False, True)),
]


def composed(model: TokenizerConfig, name: str, composition: str, shared: bool = False, k: int = 2) -> TokenizerConfig:
    """k factors of a kind."""
    factors = tuple(replace(FACTORS[name], name=f"f{i}", adapter_depth=1) for i in range(k))
    return replace(model, composition=composition, shared_codebook=shared, factors=factors)


def spread(model: FactorizedTokenizer) -> FactorizedTokenizer:
    """With codes that lie far apart."""
    for quantizer in model.quantizers:
        for tensor in (*quantizer.parameters(), *quantizer.buffers()):
            tensor.data.normal_(0, 0.5)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_product_splits_the_channels_of_one_projection(tiny: TokenizerRunConfig, images: torch.Tensor) -> None:
    """Two halves with a codebook each are one quantizer whose codes are all pairs of theirs."""
    model = spread(FactorizedTokenizer(composed(tiny.model, "vq-euclidean", "product")))
    base = model.encoder(images)
    z = model.branches[0].project(base)  # pyright: ignore
    pairs = torch.cartesian_prod(torch.arange(24), torch.arange(24))
    vectors = torch.cat([model.quantizers[i].codebook[pairs[:, i]] for i in (0, 1)], 1)  # pyright: ignore
    nearest = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 10), vectors).argmin(1)
    assert torch.equal(model.encode(images).permute(0, 2, 3, 1).reshape(-1, 2), pairs[nearest])
    assert [tuple(each.shape[1:2]) for each in model.features(images)] == [(5,), (5,)]
    names = {name for name, _ in model.branches[1].named_parameters()}  # pyright: ignore
    assert names == {"quantizer.codebook"}, "the second factor has a projection of its own"


@pytest.mark.parametrize("shared", [False, True])
def test_a_residual_quantizes_what_is_left(tiny: TokenizerRunConfig, images: torch.Tensor, shared: bool) -> None:
    """Lee et al. 2022, Eq. 3 and 4, by a plain loop; the decoder reads the sum."""
    model = spread(FactorizedTokenizer(composed(tiny.model, "vq-euclidean", "residual", shared, k=3)))
    rest = model.branches[0].project(model.encoder(images)).permute(0, 2, 3, 1)  # pyright: ignore
    total, codes = torch.zeros_like(rest), []
    for i in range(3):
        book = model.quantizers[0 if shared else i].codebook
        assert isinstance(book, torch.Tensor)
        codes.append(torch.cdist(rest.reshape(-1, 5), book).argmin(1).view(rest.shape[:3]))
        total, rest = total + book[codes[-1]], rest - book[codes[-1]]
    found = model.encode(images)
    assert torch.equal(found, torch.stack(codes, 1))
    expected = model.decoder(model.post_quant(total.permute(0, 3, 1, 2)))
    torch.testing.assert_close(model.decode(found), expected, rtol=1e-4, atol=1e-5)
    assert len({id(quantizer) for quantizer in model.quantizers}) == (1 if shared else 3)
    assert sum("codebook" in name for name in model.state_dict()) == (1 if shared else 3)


def test_a_residuals_gradient_reaches_the_features_once(tiny: TokenizerRunConfig, images: torch.Tensor) -> None:
    """The decoder's, as if the features were the sum; each factor's commitment is that of the partial sum up to it."""
    model = spread(FactorizedTokenizer(composed(tiny.model, "vq-euclidean", "residual", k=3)))
    base = model.encoder(images).detach()
    z = model.branches[0].project(base).detach().requires_grad_()  # pyright: ignore
    model.branches[0].project = lambda base: z  # pyright: ignore
    quantized = model.composition.quantize(model.branches, model.quantizers, base, False)  # pyright: ignore
    direction = torch.randn_like(z)
    (own,) = torch.autograd.grad((model.composition.combine(model.composition.passed(quantized)) * direction).sum(), z)
    torch.testing.assert_close(own, direction)
    partial = torch.stack([q.embeddings.detach() for q in quantized]).cumsum(0)
    (own,) = torch.autograd.grad(torch.stack([q.commitment_loss for q in quantized]).sum(), z)
    plain = torch.stack([F.mse_loss(z, each) for each in partial]).sum()
    torch.testing.assert_close(own, *torch.autograd.grad(plain, z), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "composition", "shared"), KINDS)
def test_twenty_steps_resume_to_the_bit_and_load(
    tiny: TokenizerRunConfig,
    tmp_path: Path,
    images: torch.Tensor,
    capsys: pytest.CaptureFixture[str],
    name: str,
    composition: str,
    shared: bool,
) -> None:
    """Each kind in each composition: it learns, resumes exactly, loads, exports, and makes a store."""
    config = child(
        tiny,
        loss={"disentangle_weight": 0.1 if name in ("vq", "bsq") else 0.0},
        optimizer={"lr": 1e-3},
        train={"steps": 20, "checkpoint_every": 10},
    )
    model = replace(config.model, image_size=16)
    config = replace(config, model=composed(model, name, composition, shared))
    train_tokenizer(config, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-00000020")  # as after a crash
    train_tokenizer(config, tmp_path / "resumed")
    assert "resumed at step 10" in capsys.readouterr().out
    a, b = (
        {file.stem: load_file(file) for file in (tmp_path / run / "checkpoints/step-00000020").glob("*.safetensors")}
        for run in ("straight", "resumed")
    )
    assert a.keys() == b.keys()
    assert [f"{f}/{n}" for f in a for n in a[f] if not torch.equal(a[f][n], b[f][n])] == []
    lines = read_stats(tmp_path / "straight")
    losses = [line["reconstruction_loss"] for line in lines]
    assert sum(losses[-5:]) < sum(losses[:5])
    tokenizer = fqgan.load_tokenizer(tmp_path / "straight")
    codes = tokenizer.encode(images)
    exported = fqgan.save_tokenizer(tokenizer, tmp_path / "exported")
    again = fqgan.load_tokenizer(exported)
    assert torch.equal(again.encode(images), codes) and torch.equal(again.decode(codes), tokenizer.decode(codes))
    assert again.fingerprint() == tokenizer.fingerprint()
    fqgan.extract(exported, data=config.data.source, out=tmp_path / "store", workers=0)
    assert TokenStore.open(tmp_path / "store").codebook_sizes == (FACTORS[name].codebook_size,) * 2


def test_what_the_weights_do_not_tell_is_in_the_fingerprint(tiny: TokenizerRunConfig) -> None:
    """The same tensors as levels 3 x 5 or 5 x 3, as lfq or bsq, in one composition or another, are other tokenizers."""
    found = set()
    for factor in (
        FactorConfig("a", quantizer="fsq", levels=(3, 5), adapter_depth=0),
        FactorConfig("a", quantizer="fsq", levels=(5, 3), adapter_depth=0),
        FactorConfig("a", 4, quantizer="lfq", adapter_depth=0),
        FactorConfig("a", 4, quantizer="bsq", adapter_depth=0),
    ):
        torch.manual_seed(0)
        found.add(FactorizedTokenizer(replace(tiny.model, factors=(factor,))).fingerprint())
    torch.manual_seed(0)
    single = replace(tiny.model, factors=(FactorConfig("a", 32, 2, 0),))
    found |= {FactorizedTokenizer(single).fingerprint()}
    torch.manual_seed(0)
    found |= {FactorizedTokenizer(replace(single, composition="product")).fingerprint()}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"shared_codebook": True}, "model.shared_codebook needs model.composition residual, not factorized"),
        ({"composition": "product"}, "model.composition product has one adapter"),
        (
            {"composition": "residual", "quantizer": "vq"},
            "residual needs quantizers that leave a rest to quantize",
        ),
        ({"composition": "residual", "dims": (4, 5)}, "residual sums the factors' vectors"),
        ({"composition": "residual", "teacher": True}, "factor semantic holds what the ones before it left"),
        ({"composition": "residual", "shared_codebook": True}, "needs factors of the same quantizer and sizes"),
        (
            {"disentangle": True},
            "loss.disentangle_weight needs codes of unit length (vq, bsq; Eq. 7), and factor",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_first(
    tiny: TokenizerRunConfig, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    residual = model.get("composition") == "residual"
    shape = {name: value for name, value in model.items() if name in ("composition", "shared_codebook")}
    dims = model.get("dims", (4, 4))
    factors = tuple(
        replace(
            each,
            quantizer=model.get("quantizer", "vq-euclidean"),
            code_dim=dims[i],
            adapter_depth=0 if residual else each.adapter_depth,
            teacher="efficientnet-lite0" if i and "teacher" in model else "",
        )
        for i, each in enumerate(tiny.model.factors)
    )
    loss = {"disentangle_weight": 0.1 if "disentangle" in model else 0.0}
    config = child(tiny, model={**shape, "factors": factors}, loss=loss, data={"source": "missing"})
    with pytest.raises(UserError, match=re.escape(message)):
        train_tokenizer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_kmeans_starts_each_residual_after_the_ones_before_it(
    tiny: TokenizerRunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second codebook's centres are small: they stand for what the first one left."""
    factors = tuple(FactorConfig(f"f{i}", 16, 4, 0, quantizer="vq-euclidean") for i in (0, 1))
    config = child(
        tiny,
        model={"factors": factors, "composition": "residual"},
        loss={"disentangle_weight": 0.0},
        quantizer={"kmeans_iterations": 10},
        optimizer={"lr": 1e-6},
        train={"steps": 1},
    )
    train_tokenizer(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert "composition of the factors: residual\n" in told
    assert "factor f1: vq-euclidean, 16 codes of 4 dimensions\n" in told
    first, second = (each.codebook for each in fqgan.load_tokenizer(tmp_path / "run").quantizers)
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
    centred = first - first.mean(0)
    assert 0 < second.norm(dim=1).mean() < 0.7 * centred.norm(dim=1).mean()
    assert second.mean(0).norm() < 0.2 * first.mean(0).norm()
