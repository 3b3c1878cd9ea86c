"""Each kind of quantizer against its paper's formula, written out with all N x K numbers in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_quantize import LargestTensor
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig
from fqgan.tokenizer.quantizers import QUANTIZERS, make_quantizer
from fqgan.tokenizer.quantizers.base import Quantized, Quantizer, as_rows

TAU = 0.7
FACTORS = {
    "vq": FactorConfig("f", 24, 5),
    "vq-euclidean": FactorConfig("f", 24, 5, quantizer="vq-euclidean"),
    "simvq": FactorConfig("f", 24, 5, quantizer="simvq"),
    "fsq": FactorConfig("f", quantizer="fsq", levels=(4, 3, 5)),
    "lfq": FactorConfig("f", 32, quantizer="lfq"),
    "bsq": FactorConfig("f", 32, quantizer="bsq"),
    "ibq": FactorConfig("f", 24, 5, quantizer="ibq"),
}


def made(name: str, tau: float = TAU) -> Quantizer:
    """In float64, its codes spread out."""
    torch.manual_seed(0)
    quantizer = make_quantizer(FACTORS[name], tau).double()
    for tensor in (*quantizer.parameters(), *quantizer.buffers()):
        tensor.data.normal_()
    return quantizer


def features(quantizer: Quantizer, n: int = 3, side: int = 4) -> Tensor:
    z = torch.randn(n, quantizer.code_dim, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return z.requires_grad_()


def all_codes(quantizer: Quantizer) -> Tensor:
    """(K, D) vectors of all codes."""
    return as_rows(quantizer.embed(torch.arange(quantizer.codebook_size)[None, None])).double()


def plain_entropy(rows: Tensor, table: Tensor, eps: float) -> Tensor:
    """Mean entropy of softmax(-d / tau) minus the entropy of their mean, from the whole matrix."""
    log_p = F.log_softmax(-(rows[:, None] - table).square().sum(2) / TAU, 1)
    mean = log_p.exp().mean(0)
    return -(log_p.exp() * log_p).sum(1).mean() + (mean * (mean + eps).log()).sum()


def backward(quantizer: Quantizer, out: Quantized, z: Tensor, direction: Tensor, weight: float) -> tuple[Tensor, ...]:
    loss = (out.vectors * direction).sum() + weight * out.entropy_loss + 0.3 * out.commitment_loss
    if out.embeddings.requires_grad:
        loss = loss + out.codebook_loss
    learned = [each for each in quantizer.parameters() if each.requires_grad]
    return torch.autograd.grad(loss, [z, *learned])


@pytest.mark.parametrize("name", ["vq-euclidean", "simvq"])
def test_the_nearest_code_in_plain_space_with_all_gradients(name: str) -> None:
    quantizer = made(name)
    z = features(quantizer)
    out = quantizer(z, entropy=True)
    direction = torch.randn_like(z)
    own = backward(quantizer, out, z, direction, 0.5)

    table = quantizer.codebook if name == "vq-euclidean" else quantizer.codebook @ quantizer.map.weight.T  # pyright: ignore
    assert isinstance(table, Tensor)
    rows = as_rows(z)
    codes = (rows[:, None] - table).square().sum(2).argmin(1)
    chosen = table[codes].view(3, 4, 4, -1).permute(0, 3, 1, 2)
    assert torch.equal(out.codes.flatten(), codes) and codes.unique().numel() > 5
    straight = z + (chosen - z).detach()
    plain = (straight * direction).sum() + F.mse_loss(chosen, z.detach()) + 0.3 * F.mse_loss(z, chosen.detach())
    plain = plain + 0.5 * plain_entropy(rows, table, 1e-5)
    parameter = quantizer.codebook if name == "vq-euclidean" else quantizer.map.weight  # pyright: ignore
    for mine, theirs in zip(own, torch.autograd.grad(plain, [z, parameter]), strict=True):  # pyright: ignore
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.entropy_loss, plain_entropy(rows, table, 1e-5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["lfq", "bsq"])
def test_the_signs_are_the_nearest_of_all_codes(name: str) -> None:
    quantizer = made(name)
    z = features(quantizer)
    out, table = quantizer(z, entropy=True), all_codes(quantizer).sign() * (1 if name == "lfq" else 5**-0.5)
    assert table.unique(dim=0).shape == (32, 5) and table.abs().unique().numel() == 1
    unit = F.normalize(z, dim=1) if name == "bsq" else z
    codes = torch.cdist(as_rows(unit), table).argmin(1)
    assert torch.equal(out.codes.flatten(), codes)
    torch.testing.assert_close(as_rows(out.embeddings), table[codes])
    direction = torch.randn_like(z)
    (own,) = backward(quantizer, out, z, direction, 0.5)
    plain = (unit * direction).sum() + 0.3 * F.mse_loss(unit, out.embeddings.detach())
    if name == "lfq":
        entropy = plain_entropy(as_rows(unit), table, 0)
    else:  # the mean's entropy bit by bit
        log_p = F.log_softmax(-(as_rows(unit)[:, None] - table).square().sum(2) / TAU, 1)
        ones = (log_p.exp().mean(0)[:, None] * (table > 0)).sum(0)
        bits = torch.stack([ones, 1 - ones])
        entropy = -(log_p.exp() * log_p).sum(1).mean() + (bits * bits.log()).sum()
    torch.testing.assert_close(out.entropy_loss, entropy, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(own, *torch.autograd.grad(plain + 0.5 * entropy, z), rtol=1e-9, atol=1e-12)


def test_levels_are_bounded_and_rounded_as_the_paper_says() -> None:
    """Mentzer et al. 2023, section 3 and A.1, channel by channel; the first digit counts least."""
    quantizer = made("fsq")
    z = (4 * features(quantizer)).detach().requires_grad_()
    out, levels = quantizer(z, entropy=True), (4, 3, 5)
    assert (quantizer.codebook_size, quantizer.code_dim, out.entropy_loss.item()) == (60, 3, 0)
    codes, place, bounded = torch.zeros_like(out.codes), 1, []
    for i, n in enumerate(levels):
        reach, offset = (n - 1) * 1.001 / 2, 0.5 if n % 2 == 0 else 0.0
        value = reach * torch.tanh(z[:, i] + math.atanh(offset / reach)) - offset
        digits = value.round() + n // 2
        assert digits.unique().tolist() == list(range(n))
        torch.testing.assert_close(out.embeddings[:, i], (digits - n // 2) / (n // 2))
        codes, place = codes + digits.long() * place, place * n
        bounded.append(value / (n // 2))
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(quantizer.embed(out.codes).double(), out.embeddings, rtol=0, atol=1e-7)
    direction = torch.randn_like(z)
    assert out.commitment_loss.item() == 0 and not out.embeddings.requires_grad
    own, theirs = (torch.autograd.grad((v * direction).sum(), z)[0] for v in (out.vectors, torch.stack(bounded, 1)))
    torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-12)


def test_the_index_passes_the_gradient_to_all_codes() -> None:
    """Shi et al. 2024: one-hot in the forward pass, softmax in the backward pass, and the double quantization loss."""
    quantizer = made("ibq")
    z = features(quantizer)
    out, direction = quantizer(z, entropy=True), torch.randn(3, 5, 4, 4, dtype=torch.float64)
    own = backward(quantizer, out, z, direction, 0.5)
    table, rows = quantizer.codebook, as_rows(z)
    assert isinstance(table, Tensor)
    logits = rows @ table.T
    hard, soft = F.one_hot(logits.argmax(1), 24).double(), logits.softmax(1)
    through = ((hard - soft).detach() + soft) @ table
    chosen, wanted = hard @ table, as_rows(direction)
    log_p = F.log_softmax(logits / TAU, 1)
    mean = log_p.exp().mean(0)
    entropy = -(log_p.exp() * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    plain = (through * wanted).sum() + 0.5 * entropy + 0.3 * F.mse_loss(rows, chosen.detach())
    plain = plain + F.mse_loss(chosen, rows.detach()) + F.mse_loss(through, rows)
    torch.testing.assert_close(out.vectors, through.view(3, 4, 4, 5).permute(0, 3, 1, 2))
    torch.testing.assert_close(out.entropy_loss, entropy, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(own, torch.autograd.grad(plain, [z, table]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert (own[1].abs().sum(1) > 0).all(), "a code got no gradient"


def test_the_gradient_through_the_index_does_not_vanish_at_the_start() -> None:
    """With codes near 0 softmax(z.e) is uniform, and every feature and code got next to none: all codes became one."""
    torch.manual_seed(0)
    quantizer = make_quantizer(FactorConfig("f", 4096, 8, quantizer="ibq"))
    z = torch.randn(4, 8, 8, 8, requires_grad=True)
    quantizer(z).vectors.sum().backward()
    assert z.grad is not None and z.grad.abs().mean() > 0.1


@pytest.mark.parametrize("name", FACTORS)
def test_codes_and_vectors_are_each_others(name: str) -> None:
    """Every code comes back from its vector, and a forward pass decodes what `embed` gives."""
    quantizer = made(name)
    codes = torch.arange(quantizer.codebook_size).view(1, 1, -1)
    vectors = quantizer.embed(codes).double()
    if name == "fsq":  # what is bounded to a level
        half = torch.tensor([2, 1, 2])[:, None, None]
        reach, offset = torch.tensor([1.5015, 1.001, 2.002]), torch.tensor([0.5, 0, 0])
        inverse = (vectors * half + offset[:, None, None]) / reach[:, None, None]
        vectors = inverse.clamp(-0.9999, 0.9999).atanh() - torch.atanh(offset / reach)[:, None, None]
    if name != "ibq":  # its code is the largest product, not the nearest
        assert torch.equal(quantizer.encode(vectors), codes)
    out = quantizer(features(quantizer))
    assert out.codes.dtype == torch.int64 and out.codes.min() >= 0 and out.codes.max() < quantizer.codebook_size
    torch.testing.assert_close(quantizer.embed(out.codes).double(), out.embeddings.double(), rtol=0, atol=1e-6)
    if quantizer.unit_length:
        torch.testing.assert_close(out.embeddings.norm(dim=1), torch.ones(3, 4, 4, dtype=torch.float64))
    for tensor in (out.codes, out.embeddings, out.detached().vectors):
        assert not out.detached().vectors.requires_grad and tensor.isfinite().all()


@pytest.mark.parametrize(
    "factor",
    [
        FactorConfig("f", 2**12, 8),
        FactorConfig("f", 2**12, 8, quantizer="vq-euclidean"),
        FactorConfig("f", 2**12, 8, quantizer="simvq"),
        FactorConfig("f", 2**12, quantizer="lfq"),
        FactorConfig("f", 2**12, quantizer="bsq"),
        FactorConfig("f", quantizer="fsq", levels=(8, 8, 8, 8)),
        FactorConfig("f", 2**12, 8, quantizer="ibq"),
    ],
    ids=lambda factor: factor.quantizer,
)
def test_no_matrix_of_rows_by_codes(factor: FactorConfig) -> None:
    """Neither forward nor backward, with the entropy loss."""
    quantizer, n = make_quantizer(factor), 64 * 64
    z = torch.randn(1, factor.code_dim, 64, 64, requires_grad=True)
    with LargestTensor() as largest:
        out = quantizer(z, entropy=True)
        (out.vectors.sum() + out.entropy_loss + out.commitment_loss).backward()
    assert largest.elements <= n * factor.codebook_size / 16


def test_every_kind_is_in_this_file() -> None:
    assert FACTORS.keys() == QUANTIZERS.keys()


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"quantizer": "fsq", "levels": (8, 8, 8, 6, 5)}, (15360, 5)),
        ({"quantizer": "lfq", "codebook_size": 1024}, (1024, 10)),
        ({"quantizer": "bsq", "codebook_size": 2**18}, (2**18, 18)),
    ],
)
def test_sizes_follow_from_each_other(options: dict[str, Any], sizes: tuple[int, int]) -> None:
    factor = FactorConfig("f", **options)
    assert (factor.codebook_size, factor.code_dim) == sizes
    quantizer = make_quantizer(factor)
    assert (quantizer.codebook_size, quantizer.code_dim) == sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantizer": "fsq"}, "factor f: fsq needs levels"),
        ({"quantizer": "lfq", "codebook_size": 1000}, "codebook_size 1000 is no power of two"),
        ({"quantizer": "vq", "levels": (8, 8)}, "levels are those of fsq, and the quantizer is vq"),
        ({"quantizer": "lfq", "codebook_size": 2**20}, "1,048,576 codes of lfq are more than 262,144"),
        ({"quantizer": "fsq", "levels": (64, 64, 64, 64)}, "16,777,216 codes of fsq are more than 262,144"),
    ],
)
def test_a_factor_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    factor = FactorConfig("f", **options)
    with pytest.raises(UserError, match=message):
        factor.check()
        make_quantizer(factor)


@pytest.mark.parametrize("name", ["fsq", "lfq", "ibq", "simvq", "vq-euclidean"])
def test_the_rotation_trick_needs_codes_of_unit_length(name: str) -> None:
    with pytest.raises(UserError, match=rf"rotation needs codes of unit length \(vq, bsq\), and factor f has {name}"):
        make_quantizer(FACTORS[name], gradient="rotation")
