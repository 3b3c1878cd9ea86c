"""What is in an image source: classes, sizes, formats, and what cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config import SourceOptions
from fqgan.config.packing import SurveySettings
from fqgan.data.headers import Header, header
from fqgan.data.order import spread_over_blocks
from fqgan.data.sources import ImageSource, open_source
from fqgan.data.unreadable import Note
from fqgan.data.workers import load

_BATCH = 64


@dataclass(frozen=True)
class Survey:
    """What is in a source."""

    numbers: dict[str, Any]
    """JSON-ready: how it was understood, pictures, classes, and of those looked at sizes, formats and what is
    unreadable."""
    warnings: list[str]
    """Of what is probably not meant."""


def survey(settings: SurveySettings) -> Survey:
    """Look at a set of images. Needs no device. `UserError` for settings that make no sense, and for data that cannot
    be read."""
    settings.check()
    source = open_source(settings.source, settings.split, SourceOptions.of(settings))
    say(source.summary(max(settings.size, default=0)))
    with image_bar("reading", min(settings.scan or len(source), len(source))) as advance:
        numbers = numbers_of(
            source,
            scan=settings.scan,
            decode=settings.decode,
            sizes=sorted({256, *settings.size}),
            workers=settings.workers,
            advance=advance,
        )
    return Survey(numbers, source.findings.warnings)


def numbers_of(
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
    those of them whose shorter side is below each of `sizes` pixels. `advance` is called with the number done.
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
    return (json.dumps(header(source, index, decode)),), []  # as text, see `fqgan.data.packer`


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
