"""What the commands do, as Python functions: settings by their names, a result back.

Each does what the command of the same name does, joins torchrun's ranks if there are any, and prints its progress.
All raise `UserError` in one line for what a user got wrong.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.schema import from_dict, from_values, plain, to_dict
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.config.evaluation import GeneratorEvaluation, TokenizerEvaluation
from fqgan.config.verbs import Drawing, ExtractionSettings, GenerationSettings
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.evaluation.protocol import Evaluation
    from fqgan.generator.generate import Generated
    from fqgan.tokenizer.extraction import Extraction

Run = TypeVar("Run", TokenizerRunConfig, GeneratorRunConfig)
Settings = TypeVar("Settings", bound=ExtractionSettings | Drawing | TokenizerEvaluation)


def extract(checkpoint: str | Path, *, data: str | Path, out: str | Path, **settings: Any) -> Extraction:
    """Encode a set of images into a token store; the same call goes on with one that was interrupted.

    Args:
        checkpoint: a tokenizer: a run folder, one of its checkpoints, an exported folder, a released file, or
            hf:org/name.
        data: images: `photos`, `cifar10`, a folder, parquet files or tars.
        out: folder of the store.
        settings: any other fields of `fqgan.config.verbs.ExtractionSettings`, such as split="validation" or
            crops="ten".
    """
    chosen = _settings(ExtractionSettings, "fqgan.extract", checkpoint=checkpoint, data=data, out=out, **settings)
    from fqgan.engine.session import running
    from fqgan.tokenizer import extraction

    with running(chosen.device) as world:
        return extraction.extract(chosen, world)


def generate(checkpoint: str | Path, *, out: str | Path, **settings: Any) -> Generated:
    """Generate pictures by class into a folder; the same call goes on with one that was interrupted.

    Args:
        checkpoint: a generator: a run folder, one of its checkpoints, an exported folder, a released file, or
            hf:org/name.
        out: folder for the pictures, a grid of the first of them, and samples.json.
        settings: any other fields of `fqgan.config.verbs.GenerationSettings`, such as classes="0,5", num=100,
            cfg_scale=3.0 or given="codes.npz".
    """
    chosen = _settings(GenerationSettings, "fqgan.generate", checkpoint=checkpoint, out=out, **settings)
    from fqgan.engine.session import running
    from fqgan.generator import generate as generation

    with running(chosen.device) as world:
        return generation.generate(chosen, world)


def evaluate(checkpoint: str | Path, *, data: str | Path, device: str = "auto", **settings: Any) -> Evaluation:
    """Measure a tokenizer's reconstructions, or the pictures that a generator makes, on a set of real images.

    Args:
        checkpoint: a run folder, one of its checkpoints, an exported folder, a released file, or hf:org/name.
        data: images: `photos`, `cifar10`, a folder, parquet files or tars.
        device: `auto`, `cpu`, `cuda` or `mps`.
        settings: any other fields of `TokenizerEvaluation` or `GeneratorEvaluation` in `fqgan.config.evaluation`, such
            as features="inception" or limit=1000; a generator's num=50_000 and samples="folder", which by default is
            `evaluation` in its run folder.

    Returns:
        `metrics` and the `protocol` behind them, `table()`, and `write(path)` for an eval.json.
    """
    from fqgan.base.inputs import as_path

    place = hub.local(as_path(checkpoint, "checkpoint"))
    from fqgan.models.find import find

    of_tokenizer = find(place).kind == "tokenizer"
    kind = TokenizerEvaluation if of_tokenizer else GeneratorEvaluation
    if not of_tokenizer and "samples" not in settings:
        if not hub.run_of(place).is_dir():
            raise UserError(f"samples is missing: {checkpoint} is no folder that the pictures could be kept in")
        settings["samples"] = hub.run_of(place) / "evaluation"
    chosen = _settings(kind, "fqgan.evaluate", checkpoint=place, data=data, **settings)
    if isinstance(chosen, GeneratorEvaluation):
        check_output(chosen.samples, folder=True, option="samples", inputs=[chosen.data])
    from fqgan.engine.session import running
    from fqgan.evaluation.generated import evaluate_generator
    from fqgan.evaluation.reconstructions import evaluate_tokenizer

    with running(device) as world:
        if isinstance(chosen, TokenizerEvaluation):
            return evaluate_tokenizer(chosen, world)
        return evaluate_generator(chosen, world)


def train_tokenizer(config: TokenizerRunConfig, run: str | Path) -> Path:
    """Train the tokenizer of a config (`fqgan.config.presets.get` has some) in a run folder, which is returned; the
    same call goes on with it."""
    from fqgan.tokenizer import task

    config, path = _run(TokenizerRunConfig, config, run)
    task.train_tokenizer(config, path)
    return path


def train_generator(config: GeneratorRunConfig, run: str | Path) -> Path:
    """Train the generator of a config (`fqgan.config.presets.get_generator` has some) in a run folder, which is
    returned; the same call goes on with it."""
    from fqgan.generator import task

    config, path = _run(GeneratorRunConfig, config, run)
    task.train_generator(config, path)
    return path


def _run(kind: type[Run], config: Run, run: str | Path) -> tuple[Run, Path]:
    """Config and folder of a training, with the types that its fields must have."""
    from fqgan.base.inputs import as_kind, as_path

    as_kind(config, kind, "config")
    return from_dict(kind, to_dict(config)), Path(as_path(run, "run"))


def _settings(kind: type[Settings], call: str, **given: Any) -> Settings:
    """Checked settings of what was handed over: numbers may be numpy's or torch's, a tuple any sequence or one value,
    and a path text."""
    tuples = {each.name for each in fields(kind) if str(each.type).startswith("tuple")}
    settings = from_values(kind, {name: plain(value, name in tuples) for name, value in given.items()}, call)
    settings.check()
    return replace(settings, checkpoint=hub.local(settings.checkpoint))
