"""Cross-entropy over clusters of codes: closed forms, and where the clusters come from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generators import tiny
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.generator.clusters import code_clusters
from fqgan.generator.cross_entropy import linear_cross_entropy
from fqgan.tokenizer.foreign import ForeignTokenizer
from fqgan.tokenizer.model import FactorizedTokenizer

CODES = 13
Result = tuple[Tensor, Tensor, Tensor, Tensor]


def computed(clusters: Tensor | None, chunk: int = 0) -> Result:
    """Loss, share of hits, and both gradients; two rows do not count."""
    torch.manual_seed(0)
    x, weight = torch.randn(50, 8, dtype=torch.float64), torch.randn(CODES, 8, dtype=torch.float64)
    targets = torch.randint(CODES, (50,))
    targets[[3, 40]] = -1
    x.requires_grad_(), weight.requires_grad_()
    loss, hits = linear_cross_entropy(x, weight, targets, chunk, clusters)
    (3 * loss).backward()
    assert x.grad is not None and weight.grad is not None and not x.grad[[3, 40]].any()
    return loss.detach(), hits, x.grad, weight.grad


@pytest.mark.parametrize("chunk", [0, 7])
def test_clusters_of_one_code_are_the_plain_cross_entropy(chunk: int) -> None:
    for own, plain in zip(computed(torch.randperm(CODES), chunk), computed(None, chunk), strict=True):
        torch.testing.assert_close(own, plain, atol=1e-6, rtol=1e-6)


def test_one_cluster_costs_nothing() -> None:
    loss, hits, *gradients = computed(torch.zeros(CODES, dtype=torch.int64))
    assert loss == 0 and hits == 1
    assert max(each.abs().max() for each in gradients) < 1e-9


@pytest.mark.parametrize("chunk", [0, 7])
def test_a_clusters_probability_is_the_sum_of_its_codes(chunk: int) -> None:
    clusters = torch.arange(CODES) % 4
    found = computed(clusters, chunk)
    torch.manual_seed(0)
    x, weight = torch.randn(50, 8, dtype=torch.float64), torch.randn(CODES, 8, dtype=torch.float64)
    targets = torch.randint(CODES, (50,))
    x.requires_grad_(), weight.requires_grad_()
    p = (x @ weight.T).softmax(1) @ F.one_hot(clusters).double()
    counts = torch.tensor([i not in (3, 40) for i in range(50)])
    loss = F.nll_loss(p.log()[counts], clusters[targets][counts])
    (3 * loss).backward()
    right = (clusters[(x @ weight.T).argmax(1)] == clusters[targets])[counts].float().mean()
    for own, plain in zip(found, (loss.detach(), right, x.grad, weight.grad), strict=True):
        torch.testing.assert_close(own.double(), plain.double(), atol=1e-6, rtol=1e-6)  # pyright: ignore


def test_the_generators_loss_has_that_of_each_factors_clusters(in_float64: None) -> None:
    model = tiny()
    codes = torch.randint(5, (2, 3, 3, 4))
    clusters = [torch.arange(size) % 3 for size in model.config.codebook_sizes]
    result = model.loss(codes, [0, 4], clusters=clusters)
    assert not model.loss(codes, [0, 4]).clusters
    for i, logits in enumerate(model(codes, [0, 4])):
        p = logits.softmax(-1) @ F.one_hot(clusters[i]).double()
        wanted = F.nll_loss(p.log().flatten(0, 1), clusters[i][codes[:, i].flatten()])
        torch.testing.assert_close(result.clusters[i].double(), wanted, atol=1e-5, rtol=1e-5)


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
