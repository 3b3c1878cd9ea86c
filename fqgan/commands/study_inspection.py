"""`fqgan study disentangle|probe|tsne|views CHECKPOINT ... --data ...`: studies of tokenizers that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.base.progress import image_bar
from fqgan.commands.arguments import parse
from fqgan.commands.generate import chosen_classes
from fqgan.config import SourceOptions
from fqgan.config.data import Small
from fqgan.config.ranges import at_least
from fqgan.lab.studies.tables import file_stem
from fqgan.models import hub

if TYPE_CHECKING:
    from torch import Tensor

    from fqgan.data.sources import ImageSource
    from fqgan.lab.studies.codes import Features
    from fqgan.tokenizer.model import FactorizedTokenizer


@dataclass(frozen=True, kw_only=True)
class Options:
    """What these studies share."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT ...")]
    """Run folders, checkpoints, exported tokenizers, released files, or hf:org/name. Each becomes one row of the
    table."""
    data: str
    """Images with labels: `photos`, `cifar10`, a folder of class folders, parquet files or tars."""
    split: Literal["train", "validation"] = "validation"
    """Split of the data, if they have several."""
    names: tuple[str, ...] = ()
    """Names of the checkpoints in tables; by default their paths."""
    out: Path = Path()
    """Folder for table and pictures."""
    limit: int = 1000
    """Number of images, spread evenly over the set; 0: all."""
    size: int = 0
    """Side of the centre crop in pixels; 0: the size that the tokenizer was trained on."""
    small: Small = "enlarge"
    """What to do with images whose shorter side is below the size: enlarge them, skip them, or refuse the set."""
    batch: int = 64
    workers: int = 2
    """Number of loader processes."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the tokenizer."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    """Seed of everything that is drawn at random."""


@dataclass(frozen=True, kw_only=True)
class DisentangleOptions(Options):
    """Of `study disentangle`."""

    permutations: int = 3
    """Number of shufflings over which the mutual information by chance is averaged."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(Options):
    """Of `study probe`."""

    split: Literal["train", "validation"] = "train"
    limit: int = 5000
    """Number of images to fit the classifier on, spread evenly over the set; 0: all."""
    test: str = ""
    """Images to test the classifier on; by default the validation split of the data."""
    test_limit: int = 2000
    """Number of images to test the classifier on, spread evenly over the set; 0: all."""
    points: Literal["mean", "grid", "both"] = "both"
    """Features of an image that are classified. mean: their mean over the positions. grid: those of all positions
    together. both: first the one, then the other."""


FIGURE_CLASSES = {"fig4": 4, "fig6": 5}
"""Preset of `study tsne` -> classes in the paper's figure."""


@dataclass(frozen=True, kw_only=True)
class TsneOptions(Options):
    """Of `study tsne`."""

    preset: Literal["fig4", "fig6"] = "fig4"
    """Figure of the paper to draw: four classes (fig4, its dual tokenizer) or five (fig6, its triple tokenizer)."""
    limit: int = 100
    """Number of images of each class, spread evenly over the set; 0: all."""
    classes: str = ""
    """Class numbers or names, separated by commas; by default the study draws as many classes at random as the preset
    has."""
    num_classes: int = 0
    """Number of classes to draw if `classes` names none; 0: as many as the preset has."""
    points: Literal["mean", "grid"] = "mean"
    """What one point of the map is: the mean over an image's positions, or all of its positions together."""
    neighbours: int = 10
    """Number of nearest neighbours whose classes are counted for the purity."""
    perplexity: float = 30.0
    """Perplexity of t-SNE."""


@dataclass(frozen=True, kw_only=True)
class ViewsOptions(Options):
    """Of `study views`."""

    limit: int = 100
    """Number of images over which PSNR is averaged, spread evenly over the set; 0: all."""
    shown: int = 8
    """Number of images shown in the picture, spread evenly over those that are measured."""


def main(name: str, argv: list[str]) -> None:
    """Entry point of the study `name`."""
    kind, about, run = STUDIES[name]
    options: Options = parse(kind, argv, f"fqgan study {name}", about)
    _check(options)
    checkpoints = {name: hub.local(path) for name, path in zip(_names(options), options.checkpoints, strict=True)}
    from fqgan.engine.allocator import keep_freed_memory
    from fqgan.engine.distributed import pick_device
    from fqgan.tokenizer.model import load_tokenizer

    keep_freed_memory()
    device = pick_device(options.device)
    models = {n: load_tokenizer(path, device, options.weights, options.precision) for n, path in checkpoints.items()}
    table, files = run(options, models)
    files = [*table.write(options.out), *files]
    say_lines(files[0].read_text())
    for file in files:
        say(file)


def check_names(options: Any) -> None:
    """`UserError` for a list of checkpoints, or their names, that makes no table."""
    if not options.checkpoints:
        raise UserError("name at least one checkpoint")
    if options.out == Path():
        raise UserError("--out is missing: the folder for table and pictures, such as --out runs/study")
    if options.names and len(options.names) != len(options.checkpoints):
        raise UserError(f"--names has {len(options.names)} name(s) for {len(options.checkpoints)} checkpoint(s)")
    names = list(options.names or map(str, options.checkpoints))
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} is named twice: tell them apart with --names")
    stems = [file_stem(name) for name in names]
    if alike := [name for name, stem in zip(names, stems, strict=True) if stems.count(stem) > 1]:
        raise UserError(f"{' and '.join(alike[:2])} would share a file: tell them apart with --names")


def _check(options: Any) -> None:
    from fqgan.lab.report.figures import require_matplotlib

    check_names(options)
    data = [value for name in ("data", "train", "test") if (value := getattr(options, name, ""))]
    check_output(options.out, folder=True, inputs=[*options.checkpoints, *map(str, data)])
    require_matplotlib()
    lowest = {"batch": 1, "limit": 0, "size": 0, "workers": 0, "seed": 0, "permutations": 1, "test_limit": 0}
    lowest |= {"neighbours": 1, "shown": 1}
    if getattr(options, "num_classes", 0):
        lowest["num_classes"] = 2
    for name, least in lowest.items():
        if hasattr(options, name):
            at_least(least, **{name.replace("_", "-"): getattr(options, name)})
    if getattr(options, "perplexity", 1) <= 0:
        raise UserError(f"--perplexity must be above 0, got {options.perplexity:g}")


def _names(options: Options) -> list[str]:
    return list(options.names or map(str, options.checkpoints))


class _Collector:
    """Features of a tokenizer on the chosen images of a source."""

    def __init__(self, options: Options, source: ImageSource, indices: Sequence[int], label: str = "encoding") -> None:
        self.options, self.source, self.indices, self.label = options, source, indices, label

    def __call__(self, name: str, tokenizer: FactorizedTokenizer) -> Features:
        from fqgan.lab.studies.codes import features_of

        options = self.options
        with image_bar(f"{self.label} {name}", len(self.indices), shown=True) as advance:
            return features_of(
                tokenizer,
                self.source,
                self.indices,
                size=_size(options, tokenizer),
                batch=options.batch,
                workers=options.workers,
                advance=advance,
            )


def _size(options: Options, tokenizer: FactorizedTokenizer) -> int:
    size = options.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    return size


def _disentangle(options: DisentangleOptions, models: Any) -> Any:
    from fqgan.data.sources import open_source
    from fqgan.lab.studies.codes import pick
    from fqgan.lab.studies.inspection import disentangle

    source = open_source(options.data, options.split, SourceOptions(small=options.small))
    collect = _Collector(options, source, pick(source, options.limit))
    return disentangle(models, collect, options.permutations, options.seed, options.out)


def _probe(options: ProbeOptions, models: Any) -> Any:
    from fqgan.data.sources import open_source
    from fqgan.lab.studies.codes import POOLS, pick
    from fqgan.lab.studies.inspection import probe

    source, test = (
        open_source(options.data, options.split, SourceOptions(small=options.small)),
        open_source(options.test or options.data, "validation", SourceOptions(small=options.small)),
    )
    for each in (source, test):
        if (each.labels < 0).any():
            raise UserError(f"{each.name} has images without a label: a probe needs one of each")
    if _same(source, test):
        raise UserError(
            f"--test {options.test} holds the images to fit on: name others"
            if options.test
            else f"{options.data} has no validation split: name images to test on with --test"
            if options.split == "train"
            else "--split validation takes the images to test on: name others with --test"
        )
    if source.classes and test.classes and source.classes != test.classes:
        raise UserError(f"{source.name} and {test.name} have other classes: a probe needs the same, in one order")
    train = _Collector(options, source, pick(source, options.limit))
    held_out = _Collector(options, test, pick(test, options.test_limit), "test images,")
    pools = POOLS if options.points == "both" else (options.points,)
    classes = len(source.classes) or int(source.labels.max()) + 1
    return probe(models, train, held_out, pools, classes, options.out)


def _same(a: ImageSource, b: ImageSource) -> bool:
    """Whether two sources hold the same pictures. What lies under other names is taken for others."""
    from fqgan.data.fingerprint import content_sha256

    return len(a) == len(b) and list(a.names()) == list(b.names()) and content_sha256(a) == content_sha256(b)


def _tsne(options: TsneOptions, models: Any) -> Any:
    import numpy as np

    from fqgan.data.sources import open_source
    from fqgan.lab.studies.codes import pick
    from fqgan.lab.studies.inspection import tsne

    source = open_source(options.data, options.split, SourceOptions(small=options.small))
    known = [int(label) for label in np.unique(source.labels) if label >= 0]
    if options.classes:
        count = max(len(source.classes), max(known, default=-1) + 1)
        classes = chosen_classes(options.classes, count, source.classes)
    else:
        wanted = options.num_classes or FIGURE_CLASSES[options.preset]
        if len(known) < wanted:
            raise UserError(
                f"{source.name} has {len(known)} class(es), not {wanted}: choose fewer with --num-classes, or --classes"
            )
        classes = sorted(np.random.default_rng(options.seed).choice(known, wanted, replace=False).tolist())
    collect = _Collector(options, source, pick(source, options.limit, classes))
    return tsne(
        models,
        collect,
        source,
        options.out,
        pool=options.points,
        neighbours=options.neighbours,
        perplexity=options.perplexity,
        seed=options.seed,
    )


def _views(options: ViewsOptions, models: Any) -> Any:
    from fqgan.data.loader import evaluation_batches
    from fqgan.data.order import evenly_spaced
    from fqgan.data.sources import open_source
    from fqgan.data.transforms import normalize
    from fqgan.lab.studies.inspection import views

    source = open_source(options.data, options.split, SourceOptions(small=options.small))

    def batches(tokenizer: FactorizedTokenizer) -> Iterator[Tensor]:
        size, device = _size(options, tokenizer), next(tokenizer.parameters()).device
        for raw, _, _ in evaluation_batches(
            source,
            size=size,
            batch=options.batch,
            limit=options.limit,
            workers=options.workers,
        ):
            yield normalize(raw.to(device))

    count = len(evenly_spaced(len(source), options.limit))
    return views(models, batches, evenly_spaced(count, options.shown), options.out)


STUDIES: dict[str, tuple[Any, str, Any]] = {
    "disentangle": (DisentangleOptions, "How far the factors of tokenizers are apart.", _disentangle),
    "probe": (ProbeOptions, "How well a linear classifier reads classes off each factor.", _probe),
    "tsne": (TsneOptions, "Images of a few classes by each factor's codes (Fig. 4, 6), and how pure they lie.", _tsne),
    "views": (ViewsOptions, "What each factor draws alone (Fig. 3).", _views),
}
