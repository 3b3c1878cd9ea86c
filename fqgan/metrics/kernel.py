"""Kernel distance between two sets of features (Binkowski et al. 2018, section 4): the squared maximum mean discrepancy
under the kernel (x y / d + 1)^3. On Inception's features it is the Kernel Inception Distance.

`torch_fidelity` and `torchmetrics` average the same unbiased estimate over random subsets of 1,000; here it is taken
once over all pairs, which needs no random numbers and has the least variance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers
from fqgan.metrics.blocks import BLOCK, Advance, blocks, nothing, same_dims

_FEWEST = 4


class _Pairs(NamedTuple):
    """Kernel values of the pairs of two sets: their sums for each member of both, and the sum of their squares."""

    first: Tensor
    second: Tensor
    squares: float


def kernel_distance(a: Numbers, b: Numbers, block: int = BLOCK, advance: Advance = nothing) -> dict[str, float]:
    """`kernel_distance`, unbiased (it may be below 0), and `kernel_distance_error`, its standard error.

    The error is the jackknife's over both sets: each image's part in the estimate follows from its sum of kernel
    values, so that no estimate is repeated. Where sets are alike, most of the variance lies in pairs and not in single
    images; the jackknife counts that part two times (Efron and Stein 1981), and the second time is taken off, though
    never more than half of the whole. Both assume that the sets were drawn apart. Of copies of the same images, such as
    reconstructions, the estimate is too low, by the order of the kernel's value at one image over n.

    Memory is linear: kernel values are taken block by block, in float64. `advance` is called with the
    rows done, n + m + n in all. `UserError` for fewer than four features, and for numbers that are not finite.

    Args:
        a, b: (n, d) and (m, d).
    """
    a, b = same_dims(a, b)
    if min(len(a), len(b)) < _FEWEST:
        raise UserError(f"the kernel distance needs {_FEWEST} features of each set, got {len(a)} and {len(b)}")
    n, m = len(a), len(b)
    own_a, own_b = _own_pairs(a, block, advance), _own_pairs(b, block, advance)
    cross = _cross_pairs(a, b, block, advance)
    sum_a, sum_b, sum_cross = own_a.first.sum(), own_b.first.sum(), cross.first.sum()
    mean_a, mean_b, mean_cross = sum_a / (n * (n - 1)), sum_b / (m * (m - 1)), sum_cross / (n * m)
    estimate = mean_a + mean_b - 2 * mean_cross
    # the same without one image of a, for each of them; then of b
    fewer_a = (sum_a - 2 * own_a.first) / ((n - 1) * (n - 2)) - 2 * (sum_cross - cross.first) / ((n - 1) * m)
    fewer_b = (sum_b - 2 * own_b.first) / ((m - 1) * (m - 2)) - 2 * (sum_cross - cross.second) / (n * (m - 1))
    variance = (n - 1) * fewer_a.var(correction=0) + (m - 1) * fewer_b.var(correction=0)
    # of pairs: mean squares of the kernel values after the means of rows and columns are taken off
    of_pairs = 2 * _own_spread(own_a, mean_a) / (n * (n - 1)) + 2 * _own_spread(own_b, mean_b) / (m * (m - 1))
    rows, columns = (cross.first / m).square().sum(), (cross.second / n).square().sum()
    spread = (cross.squares - m * rows - n * columns + n * m * mean_cross**2) / ((n - 1) * (m - 1))
    of_pairs += 4 * spread / (n * m)
    return {
        "kernel_distance": estimate.item(),
        "kernel_distance_error": math.sqrt(torch.maximum(variance - of_pairs, variance / 2).item()),
    }


def _own_spread(pairs: _Pairs, mean: Tensor) -> Tensor:
    n = len(pairs.first)
    rows = (pairs.first / (n - 1)).square().sum()
    return (pairs.squares - 2 * n * rows + n * (n + 1) * mean**2) / (n * (n - 3))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    values = torch.mm(x, y.T).div_(x.shape[1]).add_(1)
    return values * values * values


def _own_pairs(features: Tensor, block: int, advance: Advance) -> _Pairs:
    """Each feature with the others of its set."""
    own = torch.cat([(rows.square().sum(1) / rows.shape[1] + 1) ** 3 for _, rows in blocks(features, block)])
    pairs = _cross_pairs(features, features, block, advance)
    return _Pairs(pairs.first - own, pairs.second - own, pairs.squares - own.square().sum().item())


def _cross_pairs(a: Tensor, b: Tensor, block: int, advance: Advance) -> _Pairs:
    """Each feature with those of the other set."""
    first, second = [], torch.zeros(len(b), dtype=torch.float64, device=b.device)
    squares = second.new_zeros(())
    for _, rows in blocks(a, block):
        sums = torch.zeros(len(rows), dtype=torch.float64, device=a.device)
        for start, columns in blocks(b, block):
            values = _kernel(rows, columns)
            sums += values.sum(1)
            second[start : start + len(columns)] += values.sum(0)
            squares += values.square().sum()
        first.append(sums)
        advance(len(rows))
    return _Pairs(torch.cat(first), second, squares.item())
