"""Some of many, from all over."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_TAG = 0x5B4EAD  # keeps these random numbers apart from others


def spread_evenly(count: int, limit: int) -> npt.NDArray[np.int64]:
    """`limit` (0: all) positions below `count`, rising: one of each of as many equal spans, drawn at random, but always
    the same. At equal distances a set whose classes take turns would lose some of its classes."""
    limit = min(limit, count) if limit else count
    if limit == count:
        return np.arange(count)
    edges = np.arange(limit + 1, dtype=np.int64) * count // limit
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_TAG, count, limit])))
    return edges[:-1] + (rng.random(limit) * np.diff(edges)).astype(np.int64)
