"""Training's changes between codes and decoder: near codes in place of some, and later factors left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_compositions import composed, spread
from test_quantizer_kinds import FACTORS, all_codes, features, made
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import LatentConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.tokenizer import perturb
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.perturb import Perturbation, near_offset, nested, perturbation_at
from fqgan.tokenizer.task import train_tokenizer

TABLES = ["vq", "vq-euclidean", "simvq", "ibq"]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", TABLES)
def test_a_near_code_is_one_of_the_nearest_others_and_each_of_them_comes(name: str) -> None:
    quantizer = made(name)
    table = all_codes(quantizer)
    distances = torch.cdist(table, table).fill_diagonal_(torch.inf)
    nearest = distances.argsort(1)[:, :3]
    codes = torch.arange(24).repeat(60)
    near = quantizer.near(codes, 3)
    for code in range(24):
        assert set(near[codes == code].tolist()) == set(nearest[code].tolist())


@pytest.mark.parametrize("name", ["lfq", "bsq", "fsq"])
def test_without_a_table_a_near_code_is_one_level_away_in_one_channel(name: str) -> None:
    quantizer = made(name)
    levels = torch.tensor(FACTORS[name].levels or [2] * quantizer.code_dim)
    vectors = all_codes(quantizer)
    step = 1 / (levels // 2) if name == "fsq" else 2 * vectors.max()
    codes = torch.arange(quantizer.codebook_size).repeat(200)
    near = quantizer.near(codes, 1)
    apart = ((vectors[near] - vectors[codes]) / step).abs()
    one = torch.ones(len(codes), dtype=torch.float64)
    torch.testing.assert_close(apart.sum(1), one, rtol=0, atol=1e-6)
    torch.testing.assert_close(apart.amax(1), one, rtol=0, atol=1e-6)
    found = set(zip(codes.tolist(), near.tolist(), strict=True))
    edges = int(sum(2 * (n - 1) * quantizer.codebook_size // n for n in levels.tolist()))  # of the grid, both ways
    assert len(found) == edges


@pytest.mark.parametrize("name", list(FACTORS))
def test_the_share_of_codes_becomes_near_ones_and_the_rest_stays(name: str) -> None:
    quantizer = made(name)
    z = features(quantizer)
    out = quantizer(z)
    changed = out.vectors + near_offset(out, quantizer, 0.25, 2)
    same = (changed == out.vectors).all(1)
    assert (~same).sum() == round(0.25 * same.numel()) == 12
    moved = changed.permute(0, 2, 3, 1)[~same].double()
    distances = torch.cdist(moved, all_codes(quantizer))
    assert distances.amin(1).max() < 1e-6, "no code's vector"
    assert (distances.argmin(1) != out.codes[~same]).all()
    direction = torch.randn_like(z)
    own, plain = (torch.autograd.grad(x, z, direction, retain_graph=True)[0] for x in (changed, out.vectors))
    assert torch.equal(own, plain), "the gradient passes as without changes"


@pytest.mark.parametrize("composition", ["factorized", "product", "residual"])
def test_only_what_is_decoded_is_perturbed(tiny: TokenizerRunConfig, images: Tensor, composition: str) -> None:
    model = spread(FactorizedTokenizer(composed(tiny.model, "vq-euclidean", composition)))
    plain = model(images)
    torch.manual_seed(5)
    changed = model(images, change=Perturbation(0.5, 3))
    for a, b in zip(plain.quantized, changed.quantized, strict=True):
        assert torch.equal(a.codes, b.codes) and torch.equal(a.embeddings, b.embeddings)
    torch.manual_seed(5)
    codes = model.encode(images)
    for i, quantizer in enumerate(model.quantizers):
        flat = codes[:, i].flatten()
        places = torch.randperm(len(flat))[: len(flat) // 2]
        flat[places] = quantizer.near(flat[places], 3)
        codes[:, i] = flat.view_as(codes[:, i])
    torch.testing.assert_close(changed.reconstruction, model.decode(codes), rtol=1e-4, atol=1e-5)
    assert (changed.reconstruction - plain.reconstruction).abs().max() > 1e-3


def test_the_share_falls_to_nothing_or_stays() -> None:
    assert perturbation_at(LatentConfig(), 0) is None
    falling, kept = LatentConfig(0.4, 7), LatentConfig(0.4, 7, perturb_anneal=False)
    assert perturbation_at(falling, 0.25) == Perturbation(pytest.approx(0.3), 7)  # pyright: ignore
    assert perturbation_at(falling, 1) is None
    assert perturbation_at(kept, 1) == Perturbation(0.4, 7)
    masking = LatentConfig(0.4, 7, mask_share=0.2)
    assert perturbation_at(masking, 1) == Perturbation(0.0, 7, 0.2), "masking stays"


def test_training_perturbs_as_told(tiny: TokenizerRunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(perturb, "near_offset", lambda q, z, *how: told.append(how) or near_offset(q, z, *how))
    monkeypatch.setattr(perturb, "nested", lambda vectors, share: told.append(share) or nested(vectors, share))
    latent = {"perturb_share": 0.8, "perturb_neighbours": 4, "mask_share": 0.5}
    train_tokenizer(child(tiny, latent=latent), tmp_path / "run")
    assert told == [(0.8, 4), (0.8, 4), 0.5, (0.4, 4), (0.4, 4), 0.5], "two factors in each of two steps"


def test_masked_images_keep_their_first_factors() -> None:
    """A share of them; 1 to k - 1 factors are equally likely."""
    torch.manual_seed(0)
    vectors = [torch.rand(20_000, d, 1, 2) + 1 for d in (2, 3, 1, 4)]
    kept = []
    for own, each in zip(vectors, nested(vectors, 0.3), strict=True):
        zero = (each == 0).flatten(1)
        assert torch.equal(zero.all(1), zero.any(1)), "whole vectors"
        assert torch.equal(each[~zero.any(1)], own[~zero.any(1)])
        kept.append(~zero.any(1))
    counts = torch.stack(kept).sum(0)
    assert all(torch.equal(kept[i], counts > i) for i in range(4)), "the first ones"
    shares = counts.bincount(minlength=5) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0, 0.1, 0.1, 0.1, 0.7]), rtol=0, atol=0.01)


@pytest.mark.parametrize("composition", ["factorized", "product", "residual"])
def test_a_masked_image_is_what_decode_makes_of_the_kept_factors(
    tiny: TokenizerRunConfig, images: Tensor, composition: str
) -> None:
    """The codes stay: no loss but the reconstruction's sees it."""
    images = images.repeat(4, 1, 1, 1)
    model = spread(FactorizedTokenizer(composed(tiny.model, "vq-euclidean", composition)))
    torch.manual_seed(0)
    output = model(images, change=Perturbation(masked=0.5))
    codes = model.encode(images)
    expected = {kept: model.decode(codes, keep=range(kept)) for kept in (1, 2)}
    found = [
        [kept for kept in (1, 2) if torch.allclose(expected[kept][i], output.reconstruction[i], rtol=1e-4, atol=1e-5)]
        for i in range(8)
    ]
    assert sorted({kept for (kept,) in found}) == [1, 2]
    assert torch.equal(torch.stack([q.codes for q in output.quantized], 1), codes)


def test_masking_makes_the_first_factor_carry_all_that_it_can() -> None:
    """Two factors that a decoder adds up to targets: from equal starts each takes a half; with masking the only minimum
    is the target in the first one and nothing in the second."""
    torch.manual_seed(0)
    target = torch.randn(8, 3, 1, 1)
    for share, first in ((0.0, 0.5), (0.5, 1.0)):
        vectors = [torch.zeros(8, 3, 1, 1, requires_grad=True) for _ in range(2)]
        optimizer = torch.optim.SGD(vectors, lr=0.2)
        for _ in range(300):
            optimizer.zero_grad()
            error = torch.stack(nested(vectors, share)).sum(0) - target
            error.square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(vectors[0].detach(), first * target, rtol=0, atol=1e-4)
        torch.testing.assert_close(vectors[1].detach(), (1 - first) * target, rtol=0, atol=1e-4)


def test_one_factor_alone_cannot_be_masked(tiny: TokenizerRunConfig) -> None:
    with pytest.raises(UserError, match=r"latent\.mask_share masks all factors but the first, and there is one"):
        child(tiny, model={"factors": tiny.model.factors[:1]}, latent={"mask_share": 0.1}).check()


def test_more_neighbours_than_codes_are_refused(tiny: TokenizerRunConfig) -> None:
    with pytest.raises(UserError, match="perturb_neighbours 16 needs as many other codes, and factor semantic has 16"):
        child(tiny, latent={"perturb_share": 0.1, "perturb_neighbours": 16}).check()
    child(tiny, latent={"perturb_share": 0.1, "perturb_neighbours": 15}).check()
