"""The sets that can be compared: images in any form, or the statistics of images that are elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fqgan.base import schema
from fqgan.base.errors import UnreadableError, UserError
from fqgan.base.files import is_name
from fqgan.config import PictureOptions, SourceOptions
from fqgan.data.fingerprint import content_sha256
from fqgan.data.sources import Findings, ImageSource, Request, open_source
from fqgan.data.sources.base import listed
from fqgan.data.sources.folder import FileSource
from fqgan.data.sources.labels import LARGEST
from fqgan.data.sources.npz import NpzSource, keys
from fqgan.evaluation.collect import FeatureSet, LeftOut
from fqgan.evaluation.statistics import load_adm, load_statistics
from fqgan.nets.measuring import FeatureNetwork

MANIFEST = "samples.json"  # of `fqgan generate`
MADE_WITH = {"seed": int, "precision": str, "sampling": dict}
"""Entries of its settings that a protocol tells."""
_LONGEST = 2**32  # bytes: a line a picture
_TRIED = 100  # pictures, until one can be read


@dataclass(frozen=True)
class Set:
    """One side of a comparison: images, statistics, or both, as in ADM's reference batches (there the statistics are of
    more images than the file holds)."""

    name: str
    source: ImageSource | None = None
    statistics: FeatureSet | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    """What the statistics say of themselves."""
    settings: dict[str, Any] | None = None
    """How `fqgan generate` made the images."""

    @property
    def size(self) -> int:
        """Pixels a side: of the first readable image the shorter, or what the statistics were made at; 0: unknown."""
        if self.source is not None:
            for index in range(min(len(self.source), _TRIED)):
                with suppress(UnreadableError):
                    return min(self.source.read(index)[0].size)
            return 0
        return self.protocol.get("size", 0)


class GeneratedSource(FileSource):
    """The pictures that a `samples.json` lists, with their labels."""

    def __init__(self, folder: Path, name: str, manifest: dict[str, Any]) -> None:
        path = folder / MANIFEST
        if not schema.entry(manifest, "complete", bool, path):
            raise UserError(f"{name} is not finished: give the command that generates it once more")
        rows = schema.entry(manifest, "pictures", list, path, bool, "of one picture or more")
        for number, row in enumerate(rows):
            where = f"{path}: picture {number}"
            schema.entry(row, "file", str, where, is_name, "with the name of a file in the folder")
            schema.entry(row, "label", int, where, lambda label: -1 <= label < LARGEST, "from 0 on")
        findings = Findings("generated pictures", labels_from=MANIFEST)
        super().__init__([str(folder / row["file"]) for row in rows], str(folder), name, findings)
        self.labels = np.array([row["label"] for row in rows], dtype=np.int64)


def open_set(
    spec: str, split: str = "train", device: torch.device | str = "cpu", options: PictureOptions | None = None
) -> Set:
    """Open a folder of `fqgan generate`, an .npz of ADM's layout (`arr_0`, or `mu` and `sigma`, or both), statistics of
    `fqgan evaluate statistics`, or whatever `fqgan.data.sources.open_source` takes. `UserError` for all else."""
    path, options = Path(spec).expanduser(), SourceOptions.of(options or SourceOptions())
    if path.suffix == ".safetensors":
        features, protocol = load_statistics(path, device)
        return Set(spec, statistics=features, protocol=protocol)
    if path.suffix == ".npz":
        found = keys(path)
        statistics = load_adm(path, device) if {"mu", "sigma"} <= found else None
        source = NpzSource(path, Request(spec, split, options)) if "arr_0" in found else None
        if source is None and statistics is None:
            raise UserError(f"{spec} holds {listed(sorted(found)) or 'nothing'}: arr_0, or mu and sigma, is needed")
        return Set(spec, source, statistics)
    if (path / MANIFEST).is_file():
        manifest = schema.load_json(path / MANIFEST, _LONGEST)
        settings = schema.entry(manifest, "settings", dict, path / MANIFEST)
        for name, kind in MADE_WITH.items():
            schema.entry(settings, name, kind, path / MANIFEST)
        return Set(spec, GeneratedSource(path, spec, manifest), settings=settings)
    return Set(spec, open_source(spec, split, options))


def check_fit(given: Set, network: FeatureNetwork, size: int) -> None:
    """`UserError` where a set's statistics are of other features than the network's, or of images of another size."""
    if given.statistics is None:
        return
    dim = len(given.statistics.pooled.mean)
    if dim != network.dim:
        hint = "; those of ADM are Inception's: --features inception" if not given.protocol else ""
        raise UserError(
            f"the statistics in {given.name} are of {dim}-dimensional features, those of {network.name} have "
            f"{network.dim}{hint}"
        )
    if not given.protocol:
        if not network.genuine:
            raise UserError(f"mu and sigma in {given.name} are Inception's: --features inception is needed")
        return
    wanted = {"features": network.describe(), "size": size}
    made = {name: given.protocol.get(name) for name in wanted}
    if changed := schema.diff(made, wanted):
        told = ", ".join(f"{name}: {before!r}, not {after!r}" for name, (before, after) in changed.items())
        raise UserError(f"the statistics in {given.name} were made in another way ({told})")


def describe(source: ImageSource, indices: Sequence[int], left_out: LeftOut) -> dict[str, Any]:
    """What a protocol says of a set of images."""
    return {
        "count": len(indices) - left_out.unreadable - left_out.skipped,
        "of": len(source),
        **left_out._asdict(),
        "labels": label_distribution(source, indices),
    }


def label_distribution(source: ImageSource, indices: Sequence[int]) -> dict[str, int]:
    """Of some images: how many classes they are of, and the images of the smallest and of the largest of these."""
    labels = source.labels[list(indices)]
    counts = np.unique(labels[labels >= 0], return_counts=True)[1]
    return {
        "classes": len(counts),
        "fewest": int(counts.min()) if len(counts) else 0,
        "most": int(counts.max()) if len(counts) else 0,
        "unlabelled": int((labels < 0).sum()),
    }


def content_of(source: ImageSource) -> str:
    """The hash of a source's content, short enough to read."""
    return f"sha256:{content_sha256(source)}"
