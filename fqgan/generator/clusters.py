"""Groups of codes whose vectors are alike, for a cross-entropy over clusters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.protocol import Tokenizer
from fqgan.tokenizer.quantizers.keeper import kmeans
from fqgan.tokenizer.quantizers.nearest import nearest_codes

_ITERATIONS = 100  # at most: k-means ends once nothing moves


@torch.no_grad()
def code_clusters(tokenizer: Tokenizer, counts: Sequence[int], name: str) -> list[Tensor]:
    """For each factor the cluster of each of its codes, (K,) int64 on the CPU: k-means of the codes' vectors, on the
    unit sphere where they lie there. The same tokenizer gives the same clusters.

    Args:
        counts: clusters of each factor, or one number for all. As many as there are codes: a cluster for each code.
        name: of the store whose codes these are.

    Raises:
        UserError: a tokenizer of others, whose codes have no vectors that are known; counts that do not fit.
    """
    if not isinstance(tokenizer, FactorizedTokenizer):
        raise UserError(
            f"train.cluster_weight needs the vectors of the codes, and {name} was made with a tokenizer by address, "
            "whose vectors are not known: leave it out"
        )
    k = len(tokenizer.codebook_sizes)
    if len(counts) not in (1, k):
        raise UserError(f"train.clusters needs one number, or one for each of the {k} factors, got {len(counts)}")
    found = []
    vectors = tokenizer.code_vectors()
    for factor, quantizer, own, count in zip(
        tokenizer.config.factors, tokenizer.quantizers, vectors, [*counts] * k, strict=False
    ):
        if count > quantizer.codebook_size:
            raise UserError(
                f"train.clusters {count} is impossible: factor {factor.name} of {name} has {quantizer.codebook_size} "
                "codes"
            )
        unit_length = quantizer.unit_length
        seed = torch.Generator().manual_seed(0)
        centres = kmeans(own, count, _ITERATIONS, seed, unit_length=unit_length)
        found.append(nearest_codes(own, centres, None if unit_length else -centres.square().sum(1) / 2))
    return found
