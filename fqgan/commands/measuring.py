"""What the commands that compare sets of images share: options, the two sets' features, and the scores."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.base.progress import image_bar
from fqgan.config import PictureOptions
from fqgan.config.ranges import at_least

if TYPE_CHECKING:
    from fqgan.engine.distributed import World
    from fqgan.evaluation.collect import FeatureSet, Reading
    from fqgan.evaluation.sets import Set
    from fqgan.nets.measuring import FeatureNetwork


RESULT = '"metrics"'
"""What an eval.json holds."""


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions(PictureOptions):
    """How images are measured."""

    features: str = "efficientnet-lite0"
    """Network whose features are compared: `inception` (FID, sFID, Inception Score), `inception=FILE`,
    `efficientnet-lite0` (packaged, offline), `clip:ID_OR_FOLDER`, `dinov2:ID_OR_FOLDER`, `timm:NAME`, `timm:NAME=FILE`,
    or `classifier:RUN`, a run of `fqgan train-classifier`. All but `inception` and `classifier` take `@SIZE` for
    another input size."""
    size: int = 0
    """Side of the centre crop in pixels; 0: the size of the samples, or the size that the tokenizer was trained on."""
    limit: int = 0
    """Number of images of each set, spread evenly over the set; 0: all."""
    kept: int = 50_000
    """Largest number of images of each set, spread evenly over the set, whose features are kept for kernel distance,
    precision, recall, density and coverage. The time for these metrics grows with its square. 0: skip these metrics."""
    batch: int = 32
    """Number of images that are measured together. The results do not depend on it."""
    workers: int = 2
    """Number of loader processes of each rank."""
    out: Path = Path()
    """File for the results and their protocol; by default eval.json beside what is evaluated."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self, *inputs: str | Path, mark: str = RESULT) -> None:
        """Raise `UserError` for numbers that make no sense, and for an output that cannot be written or is one of the
        `inputs` or of another kind."""
        at_least(1, batch=self.batch)
        at_least(0, size=self.size, limit=self.limit, workers=self.workers, kept=self.kept)
        if self.out != Path():
            check_output(self.out, folder=False, inputs=inputs, mark=mark)

    def reading(self, size: int) -> Reading:
        """The options that a set is read with."""
        from fqgan.evaluation.collect import Reading

        return Reading(size, self.batch, self.limit, self.workers, self.kept)


def features_of(
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
    from fqgan.data.sources import announce
    from fqgan.engine.distributed import agree, from_main
    from fqgan.evaluation.collect import collect
    from fqgan.evaluation.protocol import features_protocol
    from fqgan.evaluation.sets import MADE_WITH, check_fit, content_of, describe
    from fqgan.evaluation.statistics import cache_path, cached, keep
    from fqgan.nets.inception import file_sha256

    source = given.source
    if given.statistics is not None:
        from_main(lambda: check_fit(given, network, reading.size))
        if source is None:
            known = given.protocol.get("set")
            return given.statistics, known or {"statistics": f"sha256:{file_sha256(Path(given.name).expanduser())}"}
    assert source is not None, "a set has images or statistics"
    made = features_protocol(network, reading.size, source.options)
    content = {"content": from_main(lambda: content_of(source))} if hashed or cache else {}
    place = cache_path({**made, **content, "limit": reading.limit, "kept": reading.kept}) if cache else None
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


def scores_of(
    reference: FeatureSet, samples: FeatureSet, network: FeatureNetwork, world: World
) -> tuple[dict[str, float], list[str]]:
    """Scores and warnings, on the main rank; the others get nothing."""
    from fqgan.evaluation.scores import pair_rows, set_scores, warnings_of

    if not world.is_main:
        return {}, []
    rows = pair_rows(reference, samples)
    with image_bar("comparing pairs", rows, shown=bool(rows)) as advance:
        return set_scores(reference, samples, network, advance), warnings_of(reference, samples, network)


def size_of(wanted: int, *sets: Set) -> int:
    """The size to compare at: as wanted, or that of the last set that knows its own. `UserError` where none does."""
    size = wanted or next((each.size for each in reversed(sets) if each.size), 0)
    if not size and any(each.source is not None for each in sets):
        raise UserError("neither set tells the size of its images: give --size")
    return size


def conclude(result: dict[str, Any], text: str, warnings: list[str], path: Path) -> None:
    """Print a table and its warnings, write the result, and print where."""
    from fqgan.evaluation.protocol import write_result

    say_lines(text)
    for warning in warnings:
        say(f"warning: {warning}")
    write_result({**result, "warnings": warnings}, path)
    say(path)


def result_path(checkpoint: Path, out: Path) -> Path:
    """Where the numbers of a model go: `out`, or eval.json in its run folder. `UserError` where it has no folder."""
    if out != Path():
        return out
    if checkpoint.is_file() or str(checkpoint).startswith("hf:"):
        raise UserError(f"--out is missing: {checkpoint} is no folder that eval.json could be written into")
    path = run_of(checkpoint) / "eval.json"
    check_output(path, folder=False, mark=RESULT)
    return path


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint; anything else is its own."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
