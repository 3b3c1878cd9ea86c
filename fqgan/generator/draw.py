"""From logits to codes: random streams, guidance's scales, temperature, top-k, top-p, inverse CDF."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import SamplingConfig

_GREEDY = 1e-20  # temperatures below: no sum of products would stay finite, and no draw would differ
_TINY = 1e-30  # sums of probabilities below: the most probable code alone reaches them


def uniforms(seed: int, index: int, positions: int, factors: int) -> Tensor:
    """The random numbers of one image, (positions, factors) float32 in [0, 1).

    They are those of the counter-based generator Philox under the key (seed, index), 24 bits each: what an image is
    drawn with depends on nothing else. `UserError` for a seed or index outside [0, 2^64).
    """
    for name, value in (("seed", seed), ("image index", index)):
        if not 0 <= value < 2**64:
            raise UserError(f"{name} must be a whole number from 0 to 2^64 - 1, got {value}")
    stream = np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
    bits = stream.random_raw(positions * factors) >> np.uint64(40)
    return torch.from_numpy(bits.astype(np.float32) * np.float32(2.0**-24)).view(positions, factors)


def guidance_scales(config: SamplingConfig, positions: int, factors: int) -> Tensor:
    """Guidance's scale at every position, (positions, factors) float32: the schedule inside of the factor's interval, 1
    outside.

    Progress goes from 0 at the first position to 1 at the last; position t is inside if from <= t / positions < to,
    with the bounds rounded to whole positions.
    """
    progress = np.arange(positions) / max(1, positions - 1) if positions > 1 else np.ones(1)
    columns = []
    each = (config.each(name, factors) for name in ("cfg_scale", "cfg_schedule", "cfg_power"))
    for scale, schedule, power, bounds in zip(*each, config.intervals(factors), strict=True):
        growth = {
            "constant": np.ones(positions),
            "linear": progress,
            "power-cosine": (1 - np.cos(math.pi * progress**power)) / 2,
        }[schedule]
        start, end = (round(fraction * positions) for fraction in bounds)
        inside = (np.arange(positions) >= start) & (np.arange(positions) < end)
        columns.append(1 + growth * (scale - 1) * inside)
    scales = np.stack(columns, 1)
    return torch.from_numpy(scales.astype(np.float32))


def draw(logits: Tensor, u: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Codes (n,) int64: the inverse CDF of `probabilities` at u; at temperature 0, and below 1e-20, the largest logit.
    K, which is no code, where logits are not numbers.

    Args:
        logits: (n, K) float32.
        u: (n,) in [0, 1).
    """
    if temperature < _GREEDY:
        return logits.argmax(1).masked_fill(logits.isnan().any(1), logits.shape[1])
    sums = probabilities(logits, temperature, top_k, top_p).cumsum(1)
    # u times the last sum, which rounding leaves a little off 1, stays below it, and above every sum before the first
    # possible code's
    return torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0]


def draw_each(logits: Tensor, u: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """`draw` with settings of its own for each row, all (n,), in one shape whatever they are, as a CUDA graph wants it:
    all logits are sorted."""
    size = logits.shape[1]
    sharp = temperature < _GREEDY
    values, codes = (logits / temperature.masked_fill(sharp, 1)[:, None]).sort(1, descending=True)
    limit = top_k.masked_fill((top_k <= 0) | (top_k >= size), size).masked_fill(sharp, 1)
    beyond = torch.arange(size, device=logits.device) >= limit[:, None]
    p = values.masked_fill(beyond, -torch.inf).softmax(1)
    p = p.masked_fill((p.cumsum(1) - p >= top_p.clamp(min=_TINY)[:, None]) & (top_p < 1)[:, None], 0)
    sums = torch.zeros_like(logits).scatter_(1, codes, p).cumsum(1)
    drawn = torch.searchsorted(sums, (u * sums[:, -1])[:, None], right=True)[:, 0]
    return drawn.masked_fill(logits.isnan().any(1), size)


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """(n, K): what codes are drawn from, up to a factor. Temperature, then top-k, then top-p of what that leaves.

    top-p keeps the fewest most probable codes whose probabilities reach it. Of equal codes at the border of either,
    it is left open which are kept.
    """
    top_k = top_k if 0 < top_k < logits.shape[1] else 0
    if not top_k and top_p >= 1:
        return (logits / temperature).softmax(1)
    if top_k:
        values, codes = logits.topk(top_k)
    else:
        values, codes = logits.sort(1, descending=True)
    p = (values / temperature).softmax(1)
    if top_p < 1:
        p = p.masked_fill(p.cumsum(1) - p >= max(top_p, _TINY), 0)
    return torch.zeros_like(logits).scatter_(1, codes, p)


def check_drawn(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Codes (n, k, h, w) as they are; `UserError` where logits were not numbers."""
    if (codes >= codes.new_tensor(sizes).view(-1, 1, 1)).any():
        raise UserError("the generator's logits are not numbers: its weights are spoilt, or bf16 is too narrow for it")
    return codes
