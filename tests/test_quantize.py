"""VectorQuantizer against reference numbers, a plain N x K implementation, and closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from released import filled
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fqgan.tokenizer.quantizers import soft
from fqgan.tokenizer.quantizers.base import as_rows, rotate
from fqgan.tokenizer.quantizers.nearest import nearest_codes
from fqgan.tokenizer.quantizers.vector import VectorQuantizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())["quantizer"]


def plain(z: Tensor, codebook: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Everything with N x K matrices: codes, straight-through output, codebook, commitment and entropy loss."""
    features = F.normalize(z, dim=1)
    rows, codes = features.permute(0, 2, 3, 1).flatten(0, 2), F.normalize(codebook, dim=1)
    d = rows.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * rows @ codes.T
    index = d.argmin(1)
    q = codes[index].unflatten(0, (z.shape[0], *z.shape[2:])).permute(0, 3, 1, 2)
    p, log_p = F.softmax(-d / tau, 1), F.log_softmax(-d / tau, 1)
    mean = p.mean(0)
    entropy = -(p * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    straight = features + (q - features).detach()
    return index, straight, F.mse_loss(q, features.detach()), F.mse_loss(features, q.detach()), entropy


def objective(straight: Tensor, codebook_loss: Tensor, commitment: Tensor, entropy: Tensor) -> Tensor:
    return codebook_loss + 0.25 * commitment + 0.03 * entropy + 1e-3 * straight[:, :4].sum()


def run(quantizer: VectorQuantizer, z: Tensor) -> tuple[Any, Tensor]:
    out = quantizer(z, entropy=True)
    return out, objective(out.vectors, out.codebook_loss, out.commitment_loss, out.entropy_loss)


def test_reference_numbers() -> None:
    """Ours in float64: in float32 the order of our sums adds as much to the reference's rounding again."""
    quantizer = VectorQuantizer(16384, 8)
    quantizer.codebook.data = filled("quantizer.embedding.weight", (16384, 8)).double()
    rng = np.random.Generator(np.random.PCG64(5))
    z = torch.from_numpy(rng.standard_normal((4, 8, 16, 16), dtype=np.float32)).double().requires_grad_()
    out, loss = run(quantizer, z)
    loss.backward()
    assert out.codes.flatten()[:32].tolist() == GOLDEN["indices_first32"]
    assert out.codes.sum().item() == GOLDEN["indices_sum"]
    assert out.codebook_loss.item() == pytest.approx(GOLDEN["vq"], rel=1e-6)
    assert 0.25 * out.commitment_loss.item() == pytest.approx(GOLDEN["commit"], rel=1e-6)
    assert out.entropy_loss.item() == pytest.approx(GOLDEN["entropy"], rel=1e-6)
    assert z.grad is not None and quantizer.codebook.grad is not None
    assert z.grad.norm().item() == pytest.approx(GOLDEN["grad_z_norm"], rel=1e-6)
    # the reference's own float32 rounding is 5e-6 away from the float64 value
    assert quantizer.codebook.grad.norm().item() == pytest.approx(GOLDEN["grad_codebook_norm"], rel=1e-5)


@pytest.mark.parametrize("elements", [1, 50, 10**6])
@pytest.mark.parametrize(("tau", "codes_"), [(0.01, 17), (0.5, 17), (0.01, 64)])
def test_gradients_equal_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, elements: int, tau: float, codes_: int
) -> None:
    """In float64, whatever the chunks: one row at a time, some rows with a rest, all at once."""
    chunks = lambda rows, k: (slice(i, i + max(1, elements // k)) for i in range(0, len(rows), max(1, elements // k)))  # noqa: E731
    monkeypatch.setattr(soft, "chunks", chunks)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes_, 5, tau).double()
    quantizer.codebook.data *= torch.rand(codes_, 1) + 0.5
    z = (torch.randn(2, 5, 3, 4, dtype=torch.float64) * 3).requires_grad_()
    out, loss = run(quantizer, z)
    loss.backward()
    codes, straight, *losses = plain(
        other := z.detach().requires_grad_(), book := quantizer.codebook.detach().requires_grad_(), tau
    )
    objective(straight, *losses).backward()
    assert torch.equal(out.codes.flatten(), codes)
    torch.testing.assert_close(out.vectors, straight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(z.grad, other.grad, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(quantizer.codebook.grad, book.grad, rtol=1e-9, atol=1e-14)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation put out."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_matrix_of_all_distances() -> None:
    """Neither lookup nor entropy loss, forward or backward, makes a tensor near N x K."""
    n, k = 64 * 64, 8192
    quantizer = VectorQuantizer(k, 8)
    z = torch.randn(1, 8, 64, 64, requires_grad=True)
    with LargestTensor() as largest:
        run(quantizer, z)[1].backward()
    assert k < largest.elements <= n * k // 8
    with LargestTensor() as largest, torch.no_grad():
        quantizer.encode(z)
    assert largest.elements <= n * k // 8


@pytest.mark.parametrize("codes", [37, 96])
def test_nearest_code_is_the_nearest(codes: int) -> None:
    torch.manual_seed(0)
    rows, book = (F.normalize(torch.randn(n, 4, dtype=torch.float64), dim=1) for n in (500, codes))
    assert torch.equal(nearest_codes(rows, book), torch.cdist(rows, book).argmin(1))


@pytest.mark.parametrize("codes", [9, 24])
def test_of_equal_codes_the_first_is_chosen(codes: int) -> None:
    """Within a block of codes and over several; with the entropy loss and without. The vectors have one entry each:
    elsewhere equal columns of a product may be summed in two orders."""
    quantizer = VectorQuantizer(4 * codes, codes)
    quantizer.codebook.data = torch.eye(codes)[torch.randperm(codes)].repeat(4, 1)
    expected = torch.randint(codes, (2, 5, 5))
    z = (quantizer.codebook.detach()[expected] * (torch.rand(2, 5, 5, 1) + 0.5)).permute(0, 3, 1, 2)
    for entropy in (False, True):
        assert torch.equal(quantizer(z, entropy=entropy).codes, expected)


def test_entropy_loss_in_closed_form() -> None:
    """Every feature on a code of its own: no entropy a row, log K over the mean."""
    quantizer = VectorQuantizer(4, 4)
    quantizer.codebook.data = torch.eye(4)
    z = torch.eye(4).view(1, 4, 2, 2)
    assert quantizer(z, entropy=True).entropy_loss.item() == pytest.approx(-np.log(4), rel=1e-4)
    # all on one code: the mean is as sharp as the rows
    same = torch.eye(4)[:, :1].expand(4, 4).reshape(1, 4, 2, 2)
    assert quantizer(same, entropy=True).entropy_loss.item() == pytest.approx(0, abs=1e-4)


def test_straight_through_gradient_passes_the_codes() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 3)
    z = F.normalize(torch.randn(1, 3, 2, 2), dim=1).requires_grad_()
    weights = torch.randn(1, 3, 2, 2)
    (quantizer(z).vectors * weights).sum().backward()
    features = z.detach().requires_grad_()
    (F.normalize(features, dim=1) * weights).sum().backward()
    torch.testing.assert_close(z.grad, features.grad)
    assert quantizer.codebook.grad is None


def rotation(f: Tensor, q: Tensor) -> Tensor:
    """The rotation in the plane of the unit vectors f and q that takes f to q, as a matrix (Rodrigues)."""
    turn = torch.outer(q, f) - torch.outer(f, q)
    return torch.eye(len(f), dtype=f.dtype) + turn + turn @ turn / (1 + f @ q)


def test_rotation_trick_turns_the_gradient_as_it_turns_the_feature() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 5, gradient="rotation").double()
    z = torch.randn(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    out, weights = quantizer(z), torch.randn(2, 5, 3, 3, dtype=torch.float64)
    out.features.retain_grad()
    (out.vectors * weights).sum().backward()
    torch.testing.assert_close(out.vectors, out.embeddings, rtol=0, atol=1e-15)
    assert quantizer.codebook.grad is None
    assert out.features.grad is not None
    columns = (as_rows(x.detach()) for x in (out.features, out.embeddings, weights, out.features.grad))
    for f, q, g, found in zip(*columns, strict=True):
        matrix = rotation(f, q)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(matrix @ f, q)
        torch.testing.assert_close(found, matrix.T @ g, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found, g)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["on the code", "opposite"])
def test_rotation_trick_at_its_limits(sign: float) -> None:
    """The identity where feature and code are one; a reflection, and no division by 0, where they are opposite."""
    torch.manual_seed(0)
    codes = F.normalize(torch.randn(1, 4, 2, 2, dtype=torch.float64), dim=1)
    features, weights = (sign * codes).requires_grad_(), torch.randn(1, 4, 2, 2, dtype=torch.float64)
    rotated = rotate(features, codes)
    (rotated * weights).sum().backward()
    torch.testing.assert_close(rotated.detach(), codes)
    reflected = weights - 2 * codes * (codes * weights).sum(1, keepdim=True)
    torch.testing.assert_close(features.grad, weights if sign > 0 else reflected)


def test_float32_under_autocast() -> None:
    """In bf16 most distances tie and the codebook collapses to a few codes."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(512, 8)
    z = torch.randn(2, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(z, entropy=True)
    assert out.vectors.dtype == out.entropy_loss.dtype == torch.float32
    assert torch.equal(out.codes, quantizer(z).codes)


def test_embed_gives_what_was_chosen() -> None:
    quantizer = VectorQuantizer(64, 8)
    out = quantizer(torch.randn(2, 8, 4, 4))
    torch.testing.assert_close(quantizer.embed(out.codes), out.vectors)
    torch.testing.assert_close(out.vectors.norm(dim=1), torch.ones(2, 4, 4))
