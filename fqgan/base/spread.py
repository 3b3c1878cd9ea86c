"""Some of many, from all over."""

from __future__ import annotations

import numpy as np

_TAG = 0x5B4EAD  # keeps these random numbers apart from others


def spread_evenly(count: int, limit: int, rank: int = 0, world: int = 1) -> list[int]:
    """A rank's share of `limit` (0: all) indices below `count`: one of each of as many equal spans, drawn at random,
    but always the same. At equal distances a set whose classes take turns would lose some of its classes.

    A share is consecutive and rises; shares differ by one at most and may be empty.
    """
    limit = min(limit, count) if limit else count
    own = slice(limit * rank // world, limit * (rank + 1) // world)
    if limit == count:
        return [*range(count)[own]]
    edges = np.arange(limit + 1, dtype=np.int64) * count // limit
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_TAG, count, limit])))
    return (edges[:-1] + (rng.random(limit) * np.diff(edges)).astype(np.int64))[own].tolist()
