"""Sets of images, opened in any form, and compared with each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fqgan.base import schema
from fqgan.base.errors import UnreadableError, UserError
from fqgan.base.files import file_sha256, is_name, make_folder
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config import PictureOptions, SourceOptions
from fqgan.config.evaluation import Measuring, SetEvaluation, SetStatistics
from fqgan.data.fingerprint import content_sha256
from fqgan.data.sources import Findings, ImageSource, Request, announce, open_source
from fqgan.data.sources.base import listed
from fqgan.data.sources.folder import FileSource
from fqgan.data.sources.labels import LARGEST
from fqgan.data.sources.npz import NpzSource, keys, write_images
from fqgan.engine.distributed import World, agree, from_main
from fqgan.evaluation.collect import CentreCrops, FeatureSet, LeftUnmeasured, collect
from fqgan.evaluation.protocol import Evaluation, features_protocol, full_protocol
from fqgan.evaluation.scores import compare_features, rows_of
from fqgan.evaluation.statistics import cache_path, cached, keep, load_adm, load_statistics, save_statistics
from fqgan.generator.samples import MANIFEST
from fqgan.nets.measuring import FeatureNetwork, load_network

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
        ways = ", ".join(f"{name}: {before!r}, not {after!r}" for name, (before, after) in changed.items())
        raise UserError(f"the statistics in {given.name} were made in another way ({ways})")


def describe(source: ImageSource, indices: Sequence[int], left_out: LeftUnmeasured) -> dict[str, Any]:
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


def evaluate_samples(settings: SetEvaluation, world: World) -> Evaluation:
    """All scores of a set of images against a reference; called by all ranks.

    Returns:
        `metrics`: those of `fqgan.evaluation.scores.set_scores`.

    Raises:
        UserError: sets or a network that cannot be opened, and sets without anything that could be compared.
    """
    network = load_network(settings.features, world.device)
    reference = open_set(settings.reference, settings.split, world.device, settings)
    samples = open_set(settings.samples, settings.samples_split, world.device, settings)
    return compare_sets(reference, samples, network, settings, world, settings.cache)


def compare_sets(
    reference: Set, samples: Set, network: FeatureNetwork, settings: Measuring, world: World, cache: bool
) -> Evaluation:
    """The scores of two open sets; called by all ranks.

    Args:
        cache: keep the reference's features for the next time.

    Raises:
        UserError: statistics of other features or another size, and sets without anything that could be compared.
    """
    size = from_main(lambda: size_of(settings.size, reference, samples))
    reading = CentreCrops(settings, size)
    real, real_side = features_of_set(reference, network, reading, world, "reference", hashed=True, cache=cache)
    fake, fake_side = features_of_set(samples, network, reading, world, "samples")
    scores, warnings = compare_features(real, fake, network, world)
    made = features_protocol(network, size, settings)
    protocol = full_protocol(made, settings.kept, world.device.type, reference=real_side, samples=fake_side)
    if not world.is_main:
        return Evaluation()
    counts = [f"{side['count']:,} images" if "count" in side else "statistics" for side in (fake_side, real_side)]
    head = f"{samples.name} ({counts[0]}) against {reference.name} ({counts[1]})"
    head += f" at {size} pixels" if size else ""
    if not scores:
        raise UserError("the two sets have nothing in common that could be compared")
    sources = {"reference": reference.source, "samples": samples.source}
    result = {
        "subject": "samples",
        "reference": reference.name,
        "samples": samples.name,
        "understood": {name: source.explain(size) for name, source in sources.items() if source is not None},
        "metrics": scores,
        "protocol": protocol,
    }
    return Evaluation(result, head, rows_of(scores, network.name), warnings)


def compute_statistics(settings: SetStatistics, path: Path, world: World) -> str:
    """Write a set's features and statistics into a .safetensors file; called by all ranks.

    Returns:
        What the file holds, in a line.

    Raises:
        UserError: a set that holds statistics already, or no size for its images; a network that cannot be opened.
    """
    network = load_network(settings.features, world.device)
    given = open_set(settings.data, settings.split, world.device, settings)
    if given.source is None or given.statistics is not None:
        raise UserError(f"{settings.data} holds statistics already")
    size = from_main(lambda: size_of(settings.size, given))
    features, side = features_of_set(given, network, CentreCrops(settings, size), world, "reading", hashed=True)
    if world.is_main:
        make_folder(path.parent)
        save_statistics(features, {**features_protocol(network, size, settings), "set": side}, path)
    return f"{side['count']:,} images of {given.name} at {size} pixels, {network.dim} features of {network.name}"


def features_of_set(
    given: Set,
    network: FeatureNetwork,
    reading: CentreCrops,
    world: World,
    label: str,
    hashed: bool = False,
    cache: bool = False,
) -> tuple[FeatureSet, dict[str, Any]]:
    """The features of a set, and what the protocol says of it; called by all ranks.

    Args:
        hashed: record the hash of the images' files.
        cache: look for them in the cache, where they are put otherwise; `hashed` too.
    """
    source = given.source
    if given.statistics is not None:
        from_main(lambda: check_fit(given, network, reading.size))
        if source is None:
            known = given.protocol.get("set")
            return given.statistics, known or {"statistics": f"sha256:{file_sha256(Path(given.name).expanduser())}"}
    assert source is not None, "a set has images or statistics"
    made = features_protocol(network, reading.size, source.options)
    content = {"content": from_main(lambda: content_of(source))} if hashed or cache else {}
    chosen = reading.settings
    # spread 2: one picture of each span; caches of before have pictures at equal distances
    part = {"limit": chosen.limit, "kept": chosen.kept, "spread": 2}
    place = cache_path({**made, **content, **part}) if cache else None
    found = cached(place, made, content, network.dim, world.device) if place and place.exists() else None
    if not agree(int(found is None)) and found:  # the ranks' machines may have caches of their own
        features, side = found
        if world.is_main:
            say(f"{label}: {side['count']:,} images of {given.name}, from {place}")
    else:
        if world.is_main:
            announce(source, reading.size)
        indices = reading.indices(source)
        with image_bar(label, -(-len(indices) // world.size), shown=world.is_main) as advance:
            features, left_out = collect(network, source, reading, world, advance)
        side = {**describe(source, indices, left_out), **content}
        if place and world.is_main:
            keep(features, {**made, "set": side}, place)
    if given.settings:
        side = {**side, **{name: given.settings[name] for name in MADE_WITH}}
    if given.statistics is not None:  # of more images than are at hand
        features = dataclasses.replace(features, pooled=given.statistics.pooled, spatial=given.statistics.spatial)
        side = {**side, "statistics": "as given"}
    return features, side


def size_of(wanted: int, *sets: Set) -> int:
    """The size to compare at: as wanted, or that of the last set that knows its own. `UserError` where none does."""
    size = wanted or next((each.size for each in reversed(sets) if each.size), 0)
    if not size and any(each.source is not None for each in sets):
        raise UserError("neither set tells the size of its images: give --size")
    return size


def write_arrays(settings: SetEvaluation, path: Path) -> None:
    """Write the samples as ADM's evaluator reads them, at the size that they are compared at. `UserError` where they
    are statistics only, or some cannot be read."""
    samples = open_set(settings.samples, settings.samples_split, options=settings)
    if (source := samples.source) is None:
        raise UserError(f"--npz needs images, and {samples.name} holds statistics only")
    reading = CentreCrops(settings, settings.size or samples.size)
    indices = reading.indices(source)
    batches = reading.batches(source, World(0, 1, torch.device("cpu")))
    make_folder(path.parent)
    with image_bar("writing", len(indices)) as advance:

        def pictures() -> Iterator[npt.NDArray[np.uint8]]:
            for images, _, _ in batches:
                yield from images.permute(0, 2, 3, 1).contiguous().numpy()
                advance(len(images))
            if batches.unreadable:
                raise UserError(f"{batches.unreadable} samples cannot be read: no {path} without them")

        shape = (len(indices), reading.size, reading.size, 3)
        write_images(path, pictures(), shape, np.asarray(source.labels[indices]))
