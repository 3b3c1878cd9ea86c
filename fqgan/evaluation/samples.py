"""Two sets of images against each other, and the statistics of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fqgan.base.errors import UserError
from fqgan.base.files import file_sha256, make_folder
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config.evaluation import Measuring, SetEvaluation, SetStatistics
from fqgan.data.sources import announce
from fqgan.data.sources.npz import write_images
from fqgan.engine.distributed import World, agree, from_main
from fqgan.evaluation.collect import FeatureSet, Reading, collect
from fqgan.evaluation.protocol import Evaluation, features_protocol, full_protocol
from fqgan.evaluation.scores import compare_features, rows_of
from fqgan.evaluation.sets import MADE_WITH, Set, check_fit, content_of, describe, open_set
from fqgan.evaluation.statistics import cache_path, cached, keep, save_statistics
from fqgan.nets.measuring import FeatureNetwork, load_network


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
    reading = Reading(settings, size)
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
    features, side = features_of_set(given, network, Reading(settings, size), world, "reading", hashed=True)
    if world.is_main:
        make_folder(path.parent)
        save_statistics(features, {**features_protocol(network, size, settings), "set": side}, path)
    return f"{side['count']:,} images of {given.name} at {size} pixels, {network.dim} features of {network.name}"


def features_of_set(
    given: Set,
    network: FeatureNetwork,
    reading: Reading,
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
    place = (
        cache_path({**made, **content, "limit": reading.settings.limit, "kept": reading.settings.kept})
        if cache
        else None
    )
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
    reading = Reading(settings, settings.size or samples.size)
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
