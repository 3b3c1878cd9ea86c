"""What studies can be asked for. No torch here, so that the command line starts fast."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.config import GeneratorRunConfig, SamplingConfig, TokenizerRunConfig
from fqgan.config.data import Small
from fqgan.config.devices import Device
from fqgan.config.ranges import at_least
from fqgan.lab.studies.tables import file_stem
from fqgan.models import hub


@dataclass(frozen=True, kw_only=True)
class GivenOptions:
    """Of all studies of models that are there."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT ...")]
    """Run folders, checkpoints, exports, released files, or hf:org/name; `study tokenizers` takes tokenizers of others,
    too: py:module:function or diffusers:folder-or-id. Each becomes one row of the table."""
    names: tuple[str, ...] = ()
    """Names of the checkpoints in tables; by default their paths."""
    out: Path = Path()
    """Folder for table, figure and results."""
    size: int = 0
    """Side of the centre crop in pixels; 0: the size of the first model."""
    small: Small = "enlarge"
    """What to do with images whose shorter side is below the size: enlarge them, skip them, or refuse the set."""
    workers: int = 2
    """Number of loader processes."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the models."""
    device: Device = "auto"

    def check(self) -> None:
        """`UserError` for checkpoints or names that make no table, an output that cannot be one, and numbers that make
        no sense."""
        if not self.checkpoints:
            raise UserError("name at least one checkpoint")
        if self.out == Path():
            raise UserError("--out is missing: the folder for table and pictures, such as --out runs/study")
        if self.names and len(self.names) != len(self.checkpoints):
            raise UserError(f"--names has {len(self.names)} name(s) for {len(self.checkpoints)} checkpoint(s)")
        names = list(self.names or map(str, self.checkpoints))
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{twice[0]} is named twice: tell them apart with --names")
        stems = [file_stem(name) for name in names]
        if alike := [name for name, stem in zip(names, stems, strict=True) if stems.count(stem) > 1]:
            raise UserError(f"{' and '.join(alike[:2])} would share a file: tell them apart with --names")
        data = [value for name in ("data", "test") if (value := getattr(self, name, ""))]
        check_output(self.out, folder=True, inputs=[*self.checkpoints, *data])
        numbers = {name: getattr(self, name) for name in _AT_LEAST if hasattr(self, name)}
        for name, value in numbers.items():
            at_least(_AT_LEAST[name], **{name.replace("_", "-"): value})

    @property
    def models(self) -> dict[str, Path]:
        """Name in the tables -> checkpoint."""
        return dict(zip(self.names or map(str, self.checkpoints), self.checkpoints, strict=True))

    def local(self) -> Self:
        """The same with the hub's checkpoints on this machine. `UserError` where they cannot be had."""
        found = tuple(hub.local(path) for path in self.checkpoints)
        return replace(self, names=tuple(self.models), checkpoints=found)


_AT_LEAST = {
    **dict.fromkeys(("batch", "num", "neighbours", "shown", "permutations"), 1),
    **dict.fromkeys(("limit", "size", "workers", "seed", "test_limit", "kept"), 0),
}


@dataclass(frozen=True, kw_only=True)
class InspectionOptions(GivenOptions):
    """What the studies of tokenizers' factors share."""

    data: str
    """Images with labels: `photos`, `cifar10`, a folder of class folders, parquet files or tars."""
    split: Literal["train", "validation"] = "validation"
    """Split of the data, if they have several."""
    limit: int = 1000
    """Number of images, spread evenly over the set; 0: all."""
    batch: int = 64
    """Number of images that pass through a network together."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to use: the moving average (ema) or the raw weights; auto: the moving average if there is one."""
    seed: int = 0
    """Seed of everything that is drawn at random."""


@dataclass(frozen=True, kw_only=True)
class DisentangleOptions(InspectionOptions):
    """Of `study disentangle`."""

    permutations: int = 3
    """Number of shufflings over which the mutual information by chance is averaged."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(InspectionOptions):
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
class TsneOptions(InspectionOptions):
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

    def check(self) -> None:
        """As of `GivenOptions`; and `UserError` for fewer than two classes and a perplexity of 0."""
        super().check()
        if self.num_classes:
            at_least(2, **{"num-classes": self.num_classes})
        if self.perplexity <= 0:
            raise UserError(f"--perplexity must be above 0, got {self.perplexity:g}")


@dataclass(frozen=True, kw_only=True)
class ViewsOptions(InspectionOptions):
    """Of `study views`."""

    limit: int = 100
    """Number of images over which PSNR is averaged, spread evenly over the set; 0: all."""
    shown: int = 8
    """Number of images shown in the picture, spread evenly over those that are measured."""


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(GivenOptions):
    """Of `study tokenizers` and `study generators`; more than that is said by `fqgan evaluate --help`."""

    data: str
    """Real images to compare with."""
    features: tuple[str, ...] = ("efficientnet-lite0",)
    """Networks whose features are compared."""
    limit: int = 0
    """Number of real images, spread evenly over the set, and largest number of samples; 0: all."""
    kept: int = 10_000
    """Largest number of images whose features are kept for precision and recall; 0: skip these metrics."""
    paper: bool = True
    """Add the paper's rows below ours."""
    batch: int = 32
    """Number of images that pass through a network together."""

    def check(self) -> None:
        """As of `GivenOptions`; and `UserError` for no network."""
        super().check()
        if not self.features:
            raise UserError("--features must name a network")


@dataclass(frozen=True, kw_only=True)
class TokenizersOptions(ComparisonOptions):
    """Of `study tokenizers`."""

    perceptual: Literal["efficientnet-lite0", "lpips-vgg", "none"] = "efficientnet-lite0"
    """Perceptual distance."""


@dataclass(frozen=True, kw_only=True)
class GeneratorsOptions(ComparisonOptions, SamplingConfig):
    """Of `study generators`: guidance 2.0, as in Table 2."""

    num: int = 50_000
    """Number of samples of each generator."""
    tokenizer: str = ""
    """Tokenizer that decodes the samples; empty: the one that each generator carries. Released files carry none."""
    seed: int = 0
    """Seed of the samples."""


@dataclass(frozen=True, kw_only=True)
class LearnabilityOptions(GivenOptions):
    """Of `study learnability`."""

    data: str
    """Images that the generators learn: `cifar10`, a folder, parquet files or tars; their training split."""
    validation: str = ""
    """Held-out images, for bits, and to compare samples with; by default the validation split of the data for bits, and
    its training split to compare samples with."""
    preset: str = "far-tiny"
    """Generator preset of everything but width, length and recipe."""
    widths: tuple[int, ...] = (64, 128)
    """Widths of the generators, multiples of 64 with a head for each 64 channels, or smaller ones."""
    steps: int = 600
    """Number of optimizer steps of each generator."""
    train_batch: int = 64
    """Number of images in a step."""
    train_precision: Literal["bf16", "float32"] = "bf16"
    """Precision in which the generators train (autocast); a CPU without bf16 is up to ten times as fast in float32."""
    seeds: int = 1
    """Number of seeds of each generator, counted from 0."""
    scales: tuple[float, ...] = (1.5, 2.0, 3.0)
    """Guidance scales of which the best counts; every generator also draws without guidance."""
    num: int = 2000
    """Number of samples for each distance."""
    share: float = 0.1
    """Share of the codes that are replaced, by any other and by a near one, to see what decoders bear."""
    limit: int = 2000
    """Number of held-out images, spread evenly over the set; 0: all."""
    features: tuple[str, ...] = ("efficientnet-lite0",)
    """Network whose features are compared, such as classifier:RUN, which none of the tokenizers has seen."""
    processes: int = 0
    """Number of generators that train at the same time; 0: one for each GPU, or one without GPUs."""
    batch: int = 64
    """Number of images that pass through a network together."""

    @property
    def validation_data(self) -> str:
        """Where the held-out images are."""
        return self.validation or self.data

    def check(self) -> None:
        """As of `GivenOptions`; and `UserError` for settings that give no comparison."""
        super().check()
        if len(self.features) != 1:
            raise UserError("--features must name one network: distances of several are no one ranking")
        if not self.widths or not self.scales:
            raise UserError("--widths and --scales must name at least one number each")
        at_least(1, steps=self.steps, seeds=self.seeds, **{"train-batch": self.train_batch, "widths": min(self.widths)})
        at_least(0, processes=self.processes)
        if not 0 < self.share <= 1:
            raise UserError(f"--share must be above 0 and at most 1, got {self.share}")
        if min(self.scales) <= 1:
            raise UserError("--scales are guidance scales above 1: without guidance is measured in any case")


@dataclass(frozen=True)
class MeasureOptions:
    """How all rows are measured."""

    features: tuple[str, ...] = ("efficientnet-lite0",)
    """Networks whose features are compared, named as for `fqgan evaluate`. Tables mark a network that is a teacher or
    the perceptual loss of a row."""
    classifier: str = ""
    """Run of `fqgan train-classifier`, whose network no row has seen."""
    data: str = ""
    """Images to measure on. Studies of tokenizers take the validation images by default. Studies of generators compare
    their samples with these images and need this option."""
    limit: int = 0
    """Number of images, spread evenly over the set, and largest number of a generator's samples; 0: all."""
    num: int = 50_000
    """Number of samples of each generator."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of the models while they are measured."""
    kept: int = 10_000
    """Largest number of images whose features are kept for kernel distance, precision, recall, density and coverage; 0:
    skip these metrics."""
    batch: int = 64
    """Number of images that pass through a network together."""
    workers: int = 2
    """Number of loader processes."""
    small: Small = "enlarge"
    """What to do with images whose shorter side is below the size: enlarge them, skip them, or refuse the set."""
    keep_samples: bool = False
    """Keep the generators' samples after they were measured. Otherwise the study deletes them, those of earlier calls
    included."""


@dataclass(frozen=True)
class StudyOptions:
    """Options beside the settings of the rows."""

    out: Path = Path()
    """Folder for runs, table and figure. The same command resumes and reuses finished rows."""
    config: str = ""
    """A config.json, such as another run's, whose values replace those of the preset."""
    seeds: int = 3
    """Number of seeds of every row."""
    first_seed: int = 0
    """The first of these seeds. Machines that train other seeds of a study can bring their `rows` into one folder,
    which `--seeds` of all of them then reads."""
    rows: Path = Path()
    """JSON file with more rows: {"rows": [{"name": ..., "parent": ..., "changes": {"dotted.key": value}}]}."""
    only: tuple[str, ...] = ()
    """Names of the rows to train and show; by default all rows."""
    processes: int = 0
    """Number of rows that train at the same time; 0: one for each GPU, or one without GPUs."""
    measure: MeasureOptions = field(default_factory=MeasureOptions)

    def check_study(self) -> None:
        """`UserError` for an output that cannot be one, and for numbers that make no sense."""
        if self.out == Path():
            raise UserError("--out is missing: the folder of this study, such as --out runs/ablation")
        check_output(self.out, folder=True)
        at_least(1, seeds=self.seeds)
        at_least(0, processes=self.processes, **{"first-seed": self.first_seed})
        measure = self.measure
        at_least(1, **{"measure.batch": measure.batch, "measure.num": measure.num})
        at_least(0, **{f"measure.{key}": getattr(measure, key) for key in ("limit", "kept", "workers")})
        if not measure.features and not measure.classifier:
            raise UserError("--measure.features or --measure.classifier must name a network")


@dataclass(frozen=True)
class TokenizerStudy(TokenizerRunConfig, StudyOptions):
    """The settings that the rows differ from, and the study's options."""


@dataclass(frozen=True)
class GeneratorStudy(GeneratorRunConfig, StudyOptions):
    """As `TokenizerStudy`."""


@dataclass(frozen=True)
class CurvesStudy(GeneratorStudy):
    """With a second tokenizer's codes."""

    triple: str = ""
    """Token store of a tokenizer with three factors; --data is the store of the same images by a tokenizer with two."""
    triple_validation: str = ""
    """Token store of held-out images by the tokenizer with three factors."""
