"""Cross-entropy of a linear classifier whose logits are never all in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 24  # logits at a time: 64 MiB in float32
_CHUNK_ELEMENTS_CPU = 1 << 18  # there they stay in a core's cache,
_CHUNK_ROWS_CPU = 256  # but a product of few rows is slow
_SMALLEST = torch.finfo(torch.float32).tiny  # probability of a cluster


@dataclass
class Clusters:
    """Groups of a factor's codes."""

    of: Tensor
    """(K,) int64, the cluster of each code."""
    members: Tensor
    """(clusters, codes of the largest) int64: the codes of each, and -1 where it has no more."""

    @classmethod
    def grouped(cls, of: Tensor) -> Clusters:
        """From the cluster of each code, (K,) int64."""
        sizes, order = of.bincount(), of.argsort(stable=True)
        place = torch.arange(len(of), device=of.device) - (sizes.cumsum(0) - sizes)[of[order]]
        members = of.new_full((len(sizes), int(sizes.max())), -1)
        members[of[order], place] = order
        return cls(of, members)


class LinearLoss(NamedTuple):
    """What `linear_cross_entropy` says, each a scalar."""

    loss: Tensor
    """Cross-entropy, plus `cluster_weight` times that of clusters; with gradient."""
    cross_entropy: Tensor
    """Nats a row."""
    accuracy: Tensor
    """Share of rows whose largest logit is the target's."""
    clusters: Tensor
    """Nats a row's cluster; 0 without clusters."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int = 0,
    clusters: Clusters | None = None,
    cluster_weight: float = 0.0,
) -> LinearLoss:
    """Mean cross-entropy of the logits `hidden @ weight.T`, and with clusters of the probabilities of these: a
    cluster's is the sum of its codes' (IAR, Hu et al. 2025).

    Logits are made chunk by chunk, in autocast's type where it is on, and turned into gradients on the spot: N x K
    numbers never exist, and the backward pass has nothing left to do but to scale.

    Args:
        hidden: (N, d).
        weight: (K, d).
        targets: (N,) int64 in [0, K); -1: a row that does not count.
        chunk: rows at a time; 0: 2^24 / K of them, on a CPU 2^18 / K and at least 256.
        clusters: of the K codes. The least probability of one is 1e-38 here, 87 nats.
        cluster_weight: of the clusters' cross-entropy in `loss`.
    """
    return LinearLoss(*_LinearCrossEntropy.apply(hidden, weight, targets, chunk, clusters, cluster_weight))  # pyright: ignore


@torch.no_grad()
def linear_log_likelihood(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0) -> Tensor:
    """(N,) float32 log-probabilities of the targets, in nats; arguments as of `linear_cross_entropy`."""
    rows, matrix = _as_computed(hidden, weight)
    parts = [-F.cross_entropy(x, targets[part], reduction="none") for part, x in _logits(rows, matrix, chunk)]
    return torch.cat([rows.new_zeros(0, dtype=torch.float32), *parts])


def _as_computed(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both without gradient, in autocast's type where it is on."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return hidden.detach().to(dtype), weight.detach().to(dtype)


def _logits(rows: Tensor, matrix: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after others: which, and their logits in float32."""
    if not chunk:
        on_cpu = rows.device.type == "cpu"
        elements, least = (_CHUNK_ELEMENTS_CPU, _CHUNK_ROWS_CPU) if on_cpu else (_CHUNK_ELEMENTS, 1)
        chunk = max(least, elements // len(matrix))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        yield part, (rows[part] @ matrix.T).float()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        clusters: Clusters | None,
        cluster_weight: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # what needs a gradient is asked of the context: gradients are off in here
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rows, matrix = _as_computed(hidden, weight)
        left_out, targets = targets < 0, targets.clamp(min=0)[:, None]
        rows = rows.masked_fill(left_out[:, None], 0)  # so that the weight learns nothing of them
        counted = (~left_out).sum().clamp(min=1)
        entropy, hits, of_clusters = (torch.zeros((), device=hidden.device) for _ in range(3))
        hidden_grad = torch.empty_like(rows) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        # gradients are made in units of this, which is one product in the end and not one for each logit
        unit = 1 + cluster_weight if clusters is not None else 1.0
        with torch.autocast(hidden.device.type, enabled=False):
            for part, logits in _logits(rows, matrix, chunk):
                y = targets[part]
                top, best = logits.max(1, keepdim=True)
                hits += ((best == y)[:, 0] & ~left_out[part]).sum()
                p = logits.softmax(1)
                log_sum = top - p.gather(1, best).log()  # the largest has 1 / sum of exp(logit - top)
                entropy += (log_sum - logits.gather(1, y))[:, 0].masked_fill(left_out[part], 0).sum()
                if clusters is not None:  # the few codes beside the target, and their probabilities
                    members = clusters.members[clusters.of[y[:, 0]]]
                    codes = members.clamp(min=0)
                    inside = p.gather(1, codes).masked_fill_(members < 0, 0)
                    own = inside.sum(1, keepdim=True).clamp_(min=_SMALLEST)
                    of_clusters -= own.log()[:, 0].masked_fill(left_out[part], 0).sum()
                    p.scatter_add_(1, codes, inside.mul_(-cluster_weight / unit / own))
                if hidden_grad is None and weight_grad is None:
                    continue
                p = p.scatter_add_(1, y, p.new_full((), -1 / unit).expand_as(y)).to(rows.dtype)
                if hidden_grad is not None:
                    torch.mm(p, matrix, out=hidden_grad[part])
                if weight_grad is not None:
                    weight_grad += p.T @ rows[part]
        if hidden_grad is not None:
            hidden_grad.masked_fill_(left_out[:, None], 0)
        ctx.save_for_backward(hidden_grad, weight_grad, unit / counted)
        ctx.dtypes = hidden.dtype, weight.dtype
        entropy, of_clusters, share = entropy / counted, of_clusters / counted, hits / counted
        ctx.mark_non_differentiable(entropy, share, of_clusters)
        return entropy + cluster_weight * of_clusters, entropy, share, of_clusters

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *made, scale = ctx.saved_tensors
        scale = scale * grads[0]
        scaled = (
            None if grad is None else (grad.to(scale.dtype) * scale).to(dtype)
            for grad, dtype in zip(made, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None
