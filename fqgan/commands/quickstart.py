"""`fqgan quickstart`: a small tokenizer and a generator on the packaged photographs, measured and shown on one page."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fqgan.base.errors import UserError
from fqgan.base.files import write_text
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.base.ranks import ranks
from fqgan.base.schema import finite
from fqgan.commands import quickstart_generator as second
from fqgan.commands.arguments import parse
from fqgan.config import TokenizerRunConfig, presets
from fqgan.config.ranges import at_least

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fqgan.data.sources import ImageSource
    from fqgan.lab.report.content import Report
    from fqgan.lab.report.evidence import Evidence
    from fqgan.tokenizer.model import FactorizedTokenizer

PROG = "fqgan quickstart"
PRESET = "photos-dual"
BATCH = 32
"""Images at a time in the evaluation."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Path = Path("runs/quickstart")
    """Folder for the two runs, the codes and the page. The same command resumes; once both models are trained, it only
    evaluates them again and writes the page again."""
    steps: int = 0
    """Number of optimizer steps of the tokenizer, for a shorter or longer trial; 0: as many as the preset has."""
    generator_steps: int = 0
    """Number of optimizer steps of the generator; 0: as many as the preset has."""
    images: int = 0
    """Number of images of each class that are generated and measured, for a shorter trial. The generator then learns
    from twice as many crops of each photograph. 0: 400 images of each class, and all 2,000 crops of each photograph."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train and evaluate on; auto: a GPU if there is one."""


def main(argv: list[str]) -> None:
    """Entry point."""
    began = time.monotonic()
    arguments = parse(
        Arguments,
        argv,
        PROG,
        f"Train a tokenizer (preset {PRESET}) on ten packaged photographs and a generator ({second.PRESET}) on its "
        "codes, measure both, and show everything on one page. Works offline.",
    )
    if arguments.run == Path():
        raise UserError("--run must name a folder, such as --run runs/quickstart")
    check_output(arguments.run, folder=True, option="--run")
    if arguments.run.is_dir() and any(arguments.run.iterdir()) and not (arguments.run / "tokenizer").is_dir():
        raise UserError(f"--run {arguments.run} exists and is no folder of the quickstart: choose another name")
    at_least(0, steps=arguments.steps, images=arguments.images)
    at_least(0, **{"generator-steps": arguments.generator_steps})
    _check_surroundings()

    from fqgan.data.sources import open_source
    from fqgan.data.sources.photos import NAME
    from fqgan.engine import checkpoint
    from fqgan.engine.distributed import pick_device
    from fqgan.engine.speed import fast_precision
    from fqgan.generator.task import train_generator
    from fqgan.lab.report.evidence import gather
    from fqgan.lab.report.render import page
    from fqgan.tokenizer.model import load_tokenizer
    from fqgan.tokenizer.task import train_tokenizer

    device = pick_device(arguments.device)
    precision = fast_precision(device)
    config = presets.trial(presets.get(PRESET), arguments.steps, device=arguments.device, precision=precision)
    run = arguments.run / "tokenizer"
    newest = checkpoint.latest(run / "checkpoints")
    steps_before = checkpoint.step_of(newest) if newest else 0
    _say(1, f"training tokenizer {PRESET} in {run} (Ctrl-C saves; the same command goes on)")
    train_tokenizer(config, run)

    tokenizer = load_tokenizer(run, device)
    source = open_source(NAME, "validation")
    _say(2, f"evaluating the tokenizer and the mean-colour baseline on {len(source)} held-out crops")
    evaluation = {
        "checkpoint": str(checkpoint.latest(run / "checkpoints")),
        "weights": "moving-average" if config.train.ema_decay else "raw",
        **evaluate(tokenizer, source, device),
    }
    evidence = gather(tokenizer, source, device, BATCH)

    _say(3, f"encoding the training crops into {arguments.run / 'tokens'}")
    second.extract_codes(arguments.run, arguments.device, precision, arguments.images)
    _say(4, f"training generator {second.PRESET} in {arguments.run / 'generator'}")
    settings = second.run_config(arguments.run, arguments.device, precision, arguments.generator_steps)
    train_generator(settings, arguments.run / "generator")
    _say(5, "generating images of every class, and comparing them with real ones")
    generation = second.evaluate(arguments.run / "generator", device, arguments.images)
    evaluation["generator"] = generation.evaluation
    evaluation_path = arguments.run / "eval.json"
    write_text(evaluation_path, json.dumps(finite(evaluation), indent=2) + "\n")

    path = arguments.run / "report.html"
    _say(6, f"drawing the report {path}")
    command = shlex.join([*PROG.split(), *argv])
    report = _report(run, tokenizer, evaluation, evidence, command, steps_before, time.monotonic() - began)
    report = replace(report, generation=generation)
    write_text(path, page(report))
    say_lines(summary(report))
    say(evaluation_path)
    say(path)


def _check_surroundings() -> None:
    """Everything that is needed after minutes of training is asked for before it."""
    from fqgan.data.sources import open_source
    from fqgan.data.sources.photos import NAME
    from fqgan.lab.report.figures import require_matplotlib
    from fqgan.nets.efficientnet import load_efficientnet_lite0

    if ranks().size > 1:
        raise UserError(f"{PROG} runs as one process: for several, torchrun fqgan train-tokenizer {PRESET} ...")
    require_matplotlib()
    load_efficientnet_lite0()
    open_source(NAME, "validation")


def evaluate(tokenizer: FactorizedTokenizer, source: ImageSource, device: torch.device) -> dict[str, Any]:
    """Scores of the `tokenizer` and of the `baseline` on a source, overall and for each class."""
    from fqgan.data.loader import evaluation_batches
    from fqgan.nets.efficientnet import load_efficientnet_lite0
    from fqgan.nets.perceptual import load_perceptual
    from fqgan.tokenizer.validation import Scores, evaluate_mean_colour, score_reconstructions

    size, patch = tokenizer.config.image_size, tokenizer.config.downsampling
    perceptual = load_perceptual("efficientnet-lite0")
    assert perceptual is not None
    perceptual, network = perceptual.to(device), load_efficientnet_lite0().to(device)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return evaluation_batches(source, size=size, batch=BATCH)

    def scores() -> Scores:
        return Scores(device, perceptual, network, source.classes)

    return {
        "data": source.name,
        "size": size,
        "images": len(source),
        "tokenizer": score_reconstructions(tokenizer, batches(), scores(), device),
        "baseline": {
            "description": f"mean colour of each patch of {patch} x {patch} pixels, not quantized",
            **evaluate_mean_colour(patch, batches(), scores(), device),
        },
    }


def _report(
    run: Path,
    tokenizer: FactorizedTokenizer,
    evaluation: dict[str, Any],
    evidence: Evidence,
    command: str,
    steps_before: int,
    seconds: float,
) -> Report:
    from fqgan.base import schema
    from fqgan.engine import checkpoint
    from fqgan.engine.run import read_stats
    from fqgan.engine.sizes import num_parameters
    from fqgan.lab.report.content import Report
    from fqgan.tokenizer.branch import FeaturePredictionHead

    heads = [module for module in tokenizer.modules() if isinstance(module, FeaturePredictionHead)]
    return Report(
        preset=PRESET,
        command=command,
        run=str(run),
        config=schema.load(TokenizerRunConfig, run / "config.json"),
        parameters=num_parameters(tokenizer),
        training_parameters=sum(map(num_parameters, heads)),
        device=_device_name(next(tokenizer.parameters()).device),
        steps=checkpoint.step_of(Path(evaluation["checkpoint"])),
        steps_before=steps_before,
        command_seconds=seconds,
        evaluation=evaluation,
        stats=read_stats(run),
        evidence=evidence,
    )


def summary(report: Report) -> str:
    """The result in a few aligned lines."""
    from fqgan.lab.report.content import training_seconds
    from fqgan.lab.report.numbers import PERCEPTUAL, PSNR, duration, percent

    ours, theirs = report.tokenizer, report.baseline
    training = f"{report.steps:,} steps in {duration(training_seconds(report.stats))}"
    rows = {"time": f"{duration(report.command_seconds)} for this command; training in all: {training}"}
    for name, metric in (("PSNR (pooled)", PSNR), ("perceptual distance", PERCEPTUAL)):
        rows[name] = f"{metric.shown(ours)}, baseline {metric.shown(theirs)} ({metric.comparison(ours, theirs)})"
    if report.generation:
        scores = report.generation.evaluation
        near = scores["samples"]["frechet_efficientnet"] / scores["untrained"]["frechet_efficientnet"]
        rows["generated images"] = (
            f"class recognised in {percent(scores['samples']['class_accuracy'])}, Frechet distance to real crops "
            f"{near:.2f} of an untrained generator's"
        )
    rows["codebook usage"] = ", ".join(f"{name} {percent(use['usage'])}" for name, use in ours["factors"].items())
    return "\n".join(f"  {name:<21}{value}" for name, value in rows.items())


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def _say(step: int, text: str) -> None:
    say(f"[{step}/6] {text}")
