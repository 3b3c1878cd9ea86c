"""`fqgan study ablation|scaling|heads|curves PRESET ... --out DIR`: studies of rows that are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.base.schema import did_you_mean
from fqgan.commands.runs import TrainingCommand
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.config.data import Small
from fqgan.config.ranges import at_least
from fqgan.lab.studies import generators, tokenizers
from fqgan.lab.studies.plan import Study, load_rows

if TYPE_CHECKING:
    from fqgan.lab.studies.jobs import Measuring


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
    """Number of seeds of every row, counted from 0."""
    rows: Path = Path()
    """JSON file with more rows: {"rows": [{"name": ..., "parent": ..., "changes": {"dotted.key": value}}]}."""
    only: tuple[str, ...] = ()
    """Names of the rows to train and show; by default all rows."""
    processes: int = 0
    """Number of rows that train at the same time; 0: one for each GPU, or one without GPUs."""
    measure: MeasureOptions = field(default_factory=MeasureOptions)


@dataclass(frozen=True)
class TokenizerArguments(TokenizerRunConfig, StudyOptions):
    """The settings that the rows differ from, and the study's options."""


@dataclass(frozen=True)
class GeneratorArguments(GeneratorRunConfig, StudyOptions):
    """As `TokenizerArguments`."""


@dataclass(frozen=True)
class CurvesArguments(GeneratorArguments):
    """With a second tokenizer's codes."""

    triple: str = ""
    """Token store of a tokenizer with three factors; --data is the store of the same images by a tokenizer with two."""
    triple_validation: str = ""
    """Token store of held-out images by the tokenizer with three factors."""


def main(name: str, argv: list[str]) -> None:
    """Entry point of the study `name`."""
    command, build = COMMANDS[name]
    base, arguments = command.parse_all(argv)
    _check(arguments)
    study: Study = build(base, argv[0], arguments)
    if arguments.rows != Path():
        study = study.extended(load_rows(arguments.rows))
    measuring = _measuring(base, arguments)
    from fqgan.lab.studies.training import run_study  # torch: only when there is something to train

    files = run_study(
        study, base, arguments.out, arguments.seeds, measuring, arguments.processes, tuple(arguments.only)
    )
    say_lines((arguments.out / "table.md").read_text())
    for file in files:
        say(file)


def _check(arguments: Any) -> None:
    if arguments.out == Path():
        raise UserError("--out is missing: the folder of this study, such as --out runs/ablation")
    check_output(arguments.out, folder=True)
    at_least(1, seeds=arguments.seeds)
    at_least(0, processes=arguments.processes)
    measure = arguments.measure
    at_least(1, **{"measure.batch": measure.batch, "measure.num": measure.num})
    at_least(0, **{f"measure.{key}": getattr(measure, key) for key in ("limit", "kept", "workers")})
    if not measure.features and not measure.classifier:
        raise UserError("--measure.features or --measure.classifier must name a network")


def _measuring(base: TokenizerRunConfig | GeneratorRunConfig, arguments: Any) -> Measuring:
    from fqgan.data.sources import default_validation
    from fqgan.lab.studies.jobs import Measuring, labelled

    measure, data = arguments.measure, arguments.measure.data
    options = [(name, getattr(measure, name)) for name in ("limit", "kept", "batch", "workers", "precision", "small")]
    if isinstance(base, TokenizerRunConfig):
        if not base.data.source:
            raise UserError("--data.source is missing: photos, cifar10, a folder of images, parquet files or tars")
        data = data or base.data.validation or default_validation(base.data.source)
        options.append(("perceptual", base.loss.perceptual if base.loss.perceptual_weight else "none"))
        missing = "--data.validation is missing: the images to measure on"
    else:
        if not base.data:
            raise UserError("--data is missing: a token store, which fqgan extract makes")
        options.append(("num", measure.num))
        missing = "--measure.data is missing: real images to compare the samples with"
    if not data:
        raise UserError(missing)
    features = [*measure.features, *([f"classifier:{measure.classifier}"] if measure.classifier else [])]
    networks = labelled(features)
    argv = [text for name, value in options for text in (f"--{name}", str(value))]
    return Measuring(data, networks, tuple(argv), measure.keep_samples, measure.small)


Builder = Callable[[Any, str, Any], Study]
"""Settings, preset and options -> study."""


def _command(
    name: str, about: str, presets: Mapping[str, Any], build: Builder, arguments: type[Any]
) -> tuple[TrainingCommand[Any], Builder]:
    def preset(chosen: str) -> Any:
        if chosen not in presets:
            raise UserError(f"unknown preset {chosen!r}{did_you_mean(chosen, presets)} (presets: {', '.join(presets)})")
        return presets[chosen]

    settings = type(next(iter(presets.values())))
    return TrainingCommand(f"fqgan study {name}", about, presets, preset, settings, arguments), build


def _curves(base: GeneratorRunConfig, preset: str, arguments: CurvesArguments) -> Study:
    return generators.curves(base, generators.LARGER[preset], arguments.triple, arguments.triple_validation)


COMMANDS = {
    "ablation": _command(
        "ablation",
        "Table 3: what each part of the factorized tokenizer is worth,",
        tokenizers.ABLATION_PRESETS,
        lambda base, *_: tokenizers.ablation(base),
        TokenizerArguments,
    ),
    "scaling": _command(
        "scaling",
        "Table 5: more factors and more training,",
        tokenizers.SCALING_PRESETS,
        lambda base, *_: tokenizers.scaling(base),
        TokenizerArguments,
    ),
    "heads": _command(
        "heads",
        "Table 4: linear, MLP and auto-regressive heads,",
        generators.HEADS_PRESETS,
        lambda base, *_: generators.heads(base),
        GeneratorArguments,
    ),
    "curves": _command(
        "curves",
        "Fig. 8: distance over the training of two sizes on two tokenizers' codes,",
        generators.CURVES_PRESETS,
        _curves,
        CurvesArguments,
    ),
}
