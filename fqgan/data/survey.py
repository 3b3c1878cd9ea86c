"""What is in an image source: classes, sizes, formats, and what cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fqgan.data.headers import Header, header
from fqgan.data.order import spread_over_blocks
from fqgan.data.sources import ImageSource
from fqgan.data.unreadable import Note
from fqgan.data.workers import load

_BATCH = 64


def survey(
    source: ImageSource,
    *,
    scan: int = 1000,
    decode: bool = False,
    sizes: Sequence[int] = (256,),
    workers: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """JSON-ready numbers of a source.

    `scan` evenly spaced pictures are looked at (0: all), by their headers or, with `decode`, whole; `below` counts
    those of them whose shorter side is below each of `sizes` pixels. `advance` is told how many pictures were done.
    """
    indices = spread_over_blocks(source.blocks, scan)
    keys = (indices[start : start + _BATCH] for start in range(0, len(indices), _BATCH))
    headers: list[Header] = []
    batches = load(partial(_look, source, decode), keys, workers, False)
    for (found,) in batches:
        headers += [Header(*json.loads(row)) for row in found]
        advance(len(found))
    return {
        "source": source.name,
        "kind": source.findings.form,
        "understood": source.explain(max(sizes, default=0)),
        "pictures": len(source),
        **_labels(source),
        "blocks": {"count": len(source.blocks), **_spread(source.blocks)},
        "scanned": len(headers),
        "decoded": decode,
        **_pictures([found for found in headers if not found.problem], sizes),
        "unreadable": [found.problem for found in headers if found.problem],
    }


def _look(source: ImageSource, decode: bool, index: int) -> tuple[tuple[str], list[Note]]:
    return (json.dumps(header(source, index, decode)),), []  # as text, see `fqgan.data.pack`


def _labels(source: ImageSource) -> dict[str, Any]:
    """Classes and their counts; a class without a name is called by its number."""
    labelled = source.labels[source.labels >= 0]
    names, counts = source.class_counts()
    if len(set(names)) < len(names):
        names = [f"{number} {name}" for number, name in enumerate(names)]
    return {
        "classes": dict(zip(names, counts, strict=True)),
        "labels": [int(labelled.min()), int(labelled.max())] if len(labelled) else None,
        "unlabelled": len(source) - len(labelled),
    }


def _pictures(headers: list[Header], sizes: Sequence[int]) -> dict[str, Any]:
    shorter = [min(found.width, found.height) for found in headers]
    bytes_each = [found.size for found in headers if found.size]
    return {
        "width": _spread([found.width for found in headers]),
        "height": _spread([found.height for found in headers]),
        "shorter_side": _spread(shorter),
        "below": {str(size): sum(side < size for side in shorter) for size in sizes},
        "formats": dict(Counter(found.format for found in headers if found.format).most_common()),
        "modes": dict(Counter(found.mode for found in headers).most_common()),
        "mean_bytes": round(sum(bytes_each) / len(bytes_each)) if bytes_each else None,
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {"min": int(min(values)), "median": float(np.median(values)), "max": int(max(values))}
