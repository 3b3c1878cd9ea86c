"""Cross-entropy over clusters of codes: closed forms, and where the clusters come from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generators import tiny
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.generator.clusters import code_clusters
from fqgan.generator.cross_entropy import Clusters, linear_cross_entropy
from fqgan.tokenizer.foreign import ForeignTokenizer
from fqgan.tokenizer.model import FactorizedTokenizer

CODES = 13
Result = tuple[Tensor, Tensor, Tensor, Tensor]


def computed(of: Tensor | None, weighs: float = 0.7, chunk: int = 0) -> Result:
    """Loss, that of clusters, and the loss's gradients; two rows do not count."""
    torch.manual_seed(0)
    x, weight = torch.randn(50, 8, dtype=torch.float64), torch.randn(CODES, 8, dtype=torch.float64)
    targets = torch.randint(CODES, (50,))
    targets[[3, 40]] = -1
    x.requires_grad_(), weight.requires_grad_()
    clusters = None if of is None else Clusters.grouped(of)
    found = linear_cross_entropy(x, weight, targets, chunk, clusters, weighs)
    plain = linear_cross_entropy(x, weight, targets)
    assert found.accuracy == plain.accuracy
    torch.testing.assert_close(found.cross_entropy, plain.loss.detach().float())
    (3 * found.loss).backward()
    assert x.grad is not None and weight.grad is not None and not x.grad[[3, 40]].any()
    return found.loss.detach(), found.clusters, x.grad, weight.grad


@pytest.mark.parametrize("chunk", [0, 7])
def test_clusters_of_one_code_are_the_plain_cross_entropy(chunk: int) -> None:
    loss, of_clusters, *gradients = computed(torch.randperm(CODES), 0.7, chunk)
    plain, none, *expected = computed(None, 0.0, chunk)
    assert none == 0
    torch.testing.assert_close(of_clusters, plain, atol=1e-6, rtol=1e-6)
    for own, other in zip((loss, *gradients), (plain, *expected), strict=True):
        torch.testing.assert_close(own, 1.7 * other, atol=1e-6, rtol=1e-6)


def test_one_cluster_costs_nothing() -> None:
    loss, of_clusters, *gradients = computed(torch.zeros(CODES, dtype=torch.int64))
    plain, _, *expected = computed(None)
    assert of_clusters.abs() < 1e-6
    for own, other in zip((loss, *gradients), (plain, *expected), strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [0, 7])
def test_a_clusters_probability_is_the_sum_of_its_codes(chunk: int) -> None:
    clusters = torch.arange(CODES) % 4
    found = computed(clusters, 0.7, chunk)
    torch.manual_seed(0)
    x, weight = torch.randn(50, 8, dtype=torch.float64), torch.randn(CODES, 8, dtype=torch.float64)
    targets = torch.randint(CODES, (50,))
    x.requires_grad_(), weight.requires_grad_()
    p = (x @ weight.T).softmax(1) @ F.one_hot(clusters).double()
    counts = torch.tensor([i not in (3, 40) for i in range(50)])
    of_clusters = F.nll_loss(p.log()[counts], clusters[targets][counts])
    loss = F.cross_entropy((x @ weight.T)[counts], targets[counts]) + 0.7 * of_clusters
    (3 * loss).backward()
    for own, plain in zip(found, (loss.detach(), of_clusters.detach(), x.grad, weight.grad), strict=True):
        torch.testing.assert_close(own.double(), plain.double(), atol=1e-6, rtol=1e-6)  # pyright: ignore


def test_a_cluster_without_any_probability_left_has_a_finite_loss() -> None:
    """200 nats below the others; float32 ends at 87."""
    x, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[-200.0], [-200.0], [0.0]])
    found = linear_cross_entropy(x, weight, torch.tensor([0]), 0, Clusters.grouped(torch.tensor([0, 0, 1])), 0.5)
    found.loss.backward()
    assert found.cross_entropy == 200
    assert 80 < found.clusters < 200
    assert x.grad is not None and x.grad.item() == pytest.approx(200)


def test_the_generators_loss_has_that_of_each_factors_clusters(in_float64: None) -> None:
    model = tiny()
    codes = torch.randint(5, (2, 3, 3, 4))
    clusters = [torch.arange(size) % 3 for size in model.config.codebook_sizes]
    result = model.loss(codes, [0, 4], clusters=[Clusters.grouped(each) for each in clusters], cluster_weight=0.5)
    assert not any(model.loss(codes, [0, 4]).clusters)
    for i, logits in enumerate(model(codes, [0, 4])):
        p = logits.softmax(-1) @ F.one_hot(clusters[i]).double()
        wanted = F.nll_loss(p.log().flatten(0, 1), clusters[i][codes[:, i].flatten()])
        torch.testing.assert_close(result.clusters[i].double(), wanted, atol=1e-5, rtol=1e-5)
        plain = F.cross_entropy(logits.flatten(0, 1), codes[:, i].flatten())
        torch.testing.assert_close(result.loss[i].double(), plain + 0.5 * wanted, atol=1e-5, rtol=1e-5)


def test_clusters_are_the_groups_of_the_codes_vectors(tokenizer: FactorizedTokenizer) -> None:
    groups = [torch.arange(size) % 4 for size in tokenizer.codebook_sizes]
    with torch.no_grad():
        for quantizer, group in zip(tokenizer.quantizers, groups, strict=True):
            codebook: Tensor = quantizer.codebook  # pyright: ignore[reportAssignmentType]
            codebook.copy_(torch.eye(codebook.shape[1])[group] + 0.05 * torch.randn_like(codebook))
    found = code_clusters(tokenizer, (4,), "store")
    assert [len(each) for each in found] == list(tokenizer.codebook_sizes)
    for own, again, group in zip(found, code_clusters(tokenizer, [4, 4], "store"), groups, strict=True):
        assert torch.equal(own, again) and own.dtype == torch.int64
        assert torch.equal(own[:, None] == own, group[:, None] == group)
    for own, size in zip(
        code_clusters(tokenizer, tokenizer.codebook_sizes, "s"), tokenizer.codebook_sizes, strict=True
    ):
        assert own.unique().numel() == size


def test_clusters_that_cannot_be_made_are_refused(tokenizer: FactorizedTokenizer) -> None:
    for counts, message in (
        ((1, 2, 3), "train.clusters needs one number, or one for each of the 2 factors, got 3"),
        ((20,), f"train.clusters 20 is impossible: factor {tokenizer.config.factors[1].name} of store has 16 codes"),
    ):
        with pytest.raises(UserError, match=message):
            code_clusters(tokenizer, counts, "store")
    with pytest.raises(UserError, match="store was made with a tokenizer by address, whose vectors are not known"):
        code_clusters(ForeignTokenizer.__new__(ForeignTokenizer), (4,), "store")
