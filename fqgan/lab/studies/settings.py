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
from fqgan.config.ranges import at_least
from fqgan.lab.studies.tables import file_stem
from fqgan.models import hub


@dataclass(frozen=True, kw_only=True)
class GivenOptions:
    """Of all studies of models that are there."""

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT ...")]
    """Run folders, checkpoints, exports, released files, or hf:org/name; one row of the table each."""
    names: tuple[str, ...] = ()
    """What tables call the checkpoints; by default their paths."""
    out: Path = Path()
    """Folder for table, figure and results."""
    size: int = 0
    """Pixels a side of the centre crop; 0: as the first model has it."""
    small: Small = "enlarge"
    """Images whose shorter side is below the size: enlarge them, skip them, or refuse the set."""
    workers: int = 2
    """Loader processes."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the models."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self) -> None:
        """`UserError` for checkpoints or names that make no table, an output that cannot be one, and numbers that make
        no sense."""
        if not self.checkpoints:
            raise UserError("name at least one checkpoint")
        if self.out == Path():
            raise UserError("--out is missing: the folder for table and pictures, such as --out runs/study")
        if self.names and len(self.names) != len(self.checkpoints):
            raise UserError(f"--names has {len(self.names)} name(s) for {len(self.checkpoints)} checkpoint(s)")
        names = list(self.models)
        called = list(self.names or map(str, self.checkpoints))
        if twice := [name for name in called if called.count(name) > 1]:
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
    """Which one, where the data hold several."""
    limit: int = 1000
    """Images, evenly spread; 0: all."""
    batch: int = 64
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    seed: int = 0
    """Of whatever is drawn at random."""


@dataclass(frozen=True, kw_only=True)
class DisentangleOptions(InspectionOptions):
    """Of `study disentangle`."""

    permutations: int = 3
    """Shufflings that the mutual information by chance is the mean of."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(InspectionOptions):
    """Of `study probe`."""

    split: Literal["train", "validation"] = "train"
    limit: int = 5000
    """Images to fit on, evenly spread; 0: all."""
    test: str = ""
    """Images to test on; by default the validation split of the data."""
    test_limit: int = 2000
    """Images to test on, evenly spread; 0: all."""
    points: Literal["mean", "grid", "both"] = "both"
    """What of an image is classified: the mean over its positions, all of them, or one after the other."""


FIGURE_CLASSES = {"fig4": 4, "fig6": 5}
"""Preset of `study tsne` -> classes in the paper's figure."""


@dataclass(frozen=True, kw_only=True)
class TsneOptions(InspectionOptions):
    """Of `study tsne`."""

    preset: Literal["fig4", "fig6"] = "fig4"
    """The paper's figure: four classes (Fig. 4, of its dual tokenizer) or five (Fig. 6, of its triple one)."""
    limit: int = 100
    """Images of each class, evenly spread; 0: all."""
    classes: str = ""
    """Class numbers or names, separated by commas; by default as many as the preset has are drawn at random."""
    num_classes: int = 0
    """How many classes are drawn, where none are named; 0: as many as the preset has."""
    points: Literal["mean", "grid"] = "mean"
    """What of an image is a point: the mean over its positions, or all of them."""
    neighbours: int = 10
    """Nearest neighbours whose classes are counted."""
    perplexity: float = 30.0
    """Of t-SNE."""

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
    """Images that PSNR is the mean over, evenly spread; 0: all."""
    shown: int = 8
    """Images in the picture, evenly spread over the former."""


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(GivenOptions):
    """Of `study tokenizers` and `study generators`; more than that is said by `fqgan evaluate --help`."""

    data: str
    """Real images."""
    features: tuple[str, ...] = ("efficientnet-lite0",)
    """Networks whose features are compared."""
    limit: int = 0
    """Real images, evenly spread, and as many samples at most; 0: all."""
    kept: int = 10_000
    """Images at most whose features are kept for precision and recall; 0: none of these."""
    paper: bool = True
    """The paper's table below."""
    batch: int = 32

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
    """Samples of each generator."""
    tokenizer: str = ""
    """The tokenizer that decodes; empty: the one that each generator carries, which released files don't."""
    seed: int = 0
    """Of the samples."""


@dataclass(frozen=True)
class MeasureOptions:
    """How all rows are measured."""

    features: tuple[str, ...] = ("efficientnet-lite0",)
    """Networks whose features are compared, as `fqgan evaluate` knows them. One that is a teacher or the perceptual
    loss of a row is marked."""
    classifier: str = ""
    """A run of `fqgan train-classifier`: a network that no row has seen."""
    data: str = ""
    """Images to measure on; by default the validation images of tokenizers. Generators' samples are compared with them,
    so it must be named there."""
    limit: int = 0
    """Images, evenly spread, and as many samples of generators at most; 0: all."""
    num: int = 50_000
    """Samples of each generator."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the models when they are measured."""
    kept: int = 10_000
    """Images at most whose features are kept for kernel distance, precision, recall, density and coverage; 0: none."""
    batch: int = 64
    workers: int = 2
    """Loader processes."""
    small: Small = "enlarge"
    """Images whose shorter side is below the size: enlarge them, skip them, or refuse the set."""
    keep_samples: bool = False
    """Keep the pictures of generators once they are measured; without it those of earlier calls go, too."""


@dataclass(frozen=True)
class StudyOptions:
    """Options beside the settings of the rows."""

    out: Path = Path()
    """Folder of runs, table and figure; the same command resumes, and finished rows are reused."""
    config: str = ""
    """A config.json to start from instead of the preset's values."""
    seeds: int = 3
    """Seeds of every row, counted from 0."""
    rows: Path = Path()
    """More rows: a JSON file {"rows": [{"name": ..., "parent": ..., "changes": {"dotted.key": value}}]}."""
    only: tuple[str, ...] = ()
    """Rows to train and show; all by default."""
    processes: int = 0
    """Rows at a time; 0: one for each GPU, or one."""
    measure: MeasureOptions = field(default_factory=MeasureOptions)

    def check_study(self) -> None:
        """`UserError` for an output that cannot be one, and for numbers that make no sense."""
        if self.out == Path():
            raise UserError("--out is missing: the folder of this study, such as --out runs/ablation")
        check_output(self.out, folder=True)
        at_least(1, seeds=self.seeds)
        at_least(0, processes=self.processes)
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
    """Token store of the same images by a tokenizer of three factors; --data is that of two."""
    triple_validation: str = ""
    """Its token store of held-out images."""
