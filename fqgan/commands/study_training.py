"""`fqgan study ablation|scaling PRESET --data.source ... --out DIR`: studies of rows that are trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fqgan.commands.arguments import at_least, check_output
from fqgan.commands.training import TrainingCommand
from fqgan.config import TokenizerRunConfig
from fqgan.errors import UserError
from fqgan.schema import did_you_mean
from fqgan.studies import tokenizers
from fqgan.studies.plan import Study, load_rows

if TYPE_CHECKING:
    from fqgan.studies.jobs import Measuring


@dataclass(frozen=True)
class MeasureOptions:
    """How all rows are measured."""

    features: tuple[str, ...] = ("efficientnet-lite0",)
    """Networks whose features are compared, as `fqgan evaluate` knows them. One that is a teacher or the perceptual
    loss of a row is marked."""
    classifier: str = ""
    """A run of `fqgan train-classifier`: a network that no row has seen."""
    limit: int = 0
    """Images, evenly spread; 0: all."""
    kept: int = 10_000
    """Images at most whose features are kept for kernel distance, precision, recall, density and coverage; 0: none."""
    batch: int = 64
    workers: int = 2
    """Loader processes."""


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


@dataclass(frozen=True)
class TokenizerArguments(TokenizerRunConfig, StudyOptions):
    """The settings that the rows differ from, and the study's options."""


def main(name: str, argv: list[str]) -> None:
    """Entry point of the study `name`."""
    command, build = COMMANDS[name]
    base, arguments = command.parse_all(argv)
    _check(arguments)
    study: Study = build(base)
    if arguments.rows != Path():
        study = study.extended(load_rows(arguments.rows))
    measuring = _measuring(base, arguments)
    from fqgan.studies.training import run_study  # torch: only when there is something to train

    files = run_study(
        study, base, arguments.out, arguments.seeds, measuring, arguments.processes, tuple(arguments.only)
    )
    print((arguments.out / "table.md").read_text())
    for file in files:
        print(file)


def _check(arguments: Any) -> None:
    if arguments.out == Path():
        raise UserError("--out is missing: the folder of this study, such as --out runs/ablation")
    check_output(arguments.out, folder=True)
    at_least(1, seeds=arguments.seeds)
    at_least(0, processes=arguments.processes)
    measure = arguments.measure
    at_least(1, **{"measure.batch": measure.batch})
    at_least(0, **{f"measure.{key}": getattr(measure, key) for key in ("limit", "kept", "workers")})
    if not measure.features and not measure.classifier:
        raise UserError("--measure.features or --measure.classifier must name a network")


def _measuring(base: TokenizerRunConfig, arguments: Any) -> Measuring:
    from fqgan.data.images import default_validation
    from fqgan.studies.jobs import Measuring, label_of

    measure = arguments.measure
    if not base.data.source:
        raise UserError("--data.source is missing: photos, cifar10, a folder of images, parquet files or tars")
    data = base.data.validation or default_validation(base.data.source)
    if not data:
        raise UserError("--data.validation is missing: the images to measure on")
    features = [*measure.features, *([f"classifier:{measure.classifier}"] if measure.classifier else [])]
    options = [("limit", measure.limit), ("kept", measure.kept), ("batch", measure.batch), ("workers", measure.workers)]
    argv = [text for name, value in options for text in (f"--{name}", str(value))]
    argv += ["--upscale"] if base.data.upscale else []
    perceptual = base.loss.perceptual if base.loss.perceptual_weight else "none"
    argv += ["--perceptual", perceptual]
    return Measuring(data, {label_of(network): network for network in features}, tuple(argv))


def _command(
    name: str, about: str, presets: dict[str, TokenizerRunConfig], build: Callable[[TokenizerRunConfig], Study]
) -> tuple[TrainingCommand[TokenizerRunConfig], Callable[[Any], Study]]:
    def preset(chosen: str) -> TokenizerRunConfig:
        if chosen not in presets:
            raise UserError(f"unknown preset {chosen!r}{did_you_mean(chosen, presets)} (presets: {', '.join(presets)})")
        return presets[chosen]

    prog = f"fqgan study {name}"
    return TrainingCommand(prog, about, presets, preset, TokenizerRunConfig, TokenizerArguments), build


COMMANDS = {
    "ablation": _command(
        "ablation",
        "Table 3: what each part of the factorized tokenizer is worth,",
        tokenizers.ABLATION_PRESETS,
        tokenizers.ablation,
    ),
    "scaling": _command(
        "scaling", "Table 5: more factors and more training,", tokenizers.SCALING_PRESETS, tokenizers.scaling
    ),
}
