"""Cross-entropy of a linear classifier whose logits are never all in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 24  # logits at a time: 64 MiB in float32


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0, clusters: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the logits `hidden @ weight.T`, and the share of rows whose largest logit is the target's.

    Logits are made chunk by chunk, in autocast's type where it is on, and turned into gradients on the spot: N x K
    numbers never exist, and the backward pass has nothing left to do but to scale.

    Args:
        hidden: (N, d).
        weight: (K, d).
        targets: (N,) int64 in [0, K); -1: a row that does not count.
        chunk: rows at a time; 0: 2^24 / K of them.
        clusters: (K,) int64, the cluster of each code: both numbers are those of the targets' clusters, whose
            probability is the sum of their codes' (IAR, Hu et al. 2025). None: of the targets themselves.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk, clusters)  # pyright: ignore[reportReturnType]


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
    chunk = chunk or max(1, _CHUNK_ELEMENTS // len(matrix))
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        yield part, (rows[part] @ matrix.T).float()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, clusters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # what needs a gradient is asked of the context: gradients are off in here
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rows, matrix = _as_computed(hidden, weight)
        loss, hits = (torch.zeros((), device=hidden.device) for _ in range(2))
        hidden_grad = torch.empty_like(rows) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        counted = (targets >= 0).sum().clamp(min=1)
        with torch.autocast(hidden.device.type, enabled=False):
            for part, logits in _logits(rows, matrix, chunk):
                x, y = rows[part], targets[part]
                chosen, inside = logits.argmax(1), None
                if clusters is None:
                    loss += F.cross_entropy(logits, y, reduction="sum", ignore_index=-1)
                    hits += (chosen == y).sum()
                else:
                    inside = logits.masked_fill(clusters != clusters[y][:, None], -torch.inf)
                    loss += (logits.logsumexp(1) - inside.logsumexp(1)).masked_fill(y < 0, 0).sum()
                    hits += ((clusters[chosen] == clusters[y]) & (y >= 0)).sum()
                if hidden_grad is None and weight_grad is None:
                    continue
                p = logits.softmax(1)
                if inside is None:
                    p[torch.arange(len(y), device=y.device), y] -= 1
                else:
                    p -= inside.softmax(1)
                p = (p.masked_fill_((y < 0)[:, None], 0) / counted).to(rows.dtype)
                if hidden_grad is not None:
                    torch.mm(p, matrix, out=hidden_grad[part])
                if weight_grad is not None:
                    weight_grad += p.T @ x
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = hidden.dtype, weight.dtype
        share = hits / counted
        ctx.mark_non_differentiable(share)
        return loss / counted, share

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if grad is None else (grad * grads[0].to(grad.dtype)).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None
