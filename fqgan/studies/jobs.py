"""One row at one seed: trained where it is missing, measured where that is missing, reused where both are there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fqgan import schema
from fqgan.checkpoints import load_generator, load_tokenizer, save_generator, save_tokenizer
from fqgan.commands import evaluate_generator, evaluate_tokenizer
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.data.images import open_source
from fqgan.data.tokens import TokenStore
from fqgan.engine import checkpoint
from fqgan.engine.batches import total_steps
from fqgan.errors import UserError
from fqgan.files import making_folder, write_text
from fqgan.generator.training import train_generator
from fqgan.studies.measured import answers, measure
from fqgan.studies.plan import Line, undeclared
from fqgan.tokenizer.training import train_tokenizer

POINT = "study.json"
"""In an exported point: what it was trained on."""


@dataclass(frozen=True)
class Measuring:
    """The one protocol that all lines are measured under."""

    data: str
    """Images to reconstruct, or to compare samples with."""
    networks: Mapping[str, str]
    """Label -> `--features` of the networks whose features are compared."""
    options: tuple[str, ...] = ()
    """More options of `fqgan evaluate`."""


@dataclass(frozen=True)
class Job:
    """A row at a seed."""

    row: str
    seed: int
    config: TokenizerRunConfig | GeneratorRunConfig
    folder: Path
    """Its run."""
    lines: tuple[Line, ...]
    measuring: Measuring

    @property
    def fractions(self) -> list[float]:
        """At which it is measured, rising."""
        return sorted({line.fraction for line in self.lines})

    def point(self, fraction: float) -> Path:
        """Folder of the model at a fraction of the training."""
        return self.folder / "points" / f"{fraction:.6g}"

    def measured(self, line: Line, network: str) -> Path:
        """File of what a line scored."""
        return self.folder / "measured" / f"{line.name}--{network}.json"


@dataclass(frozen=True)
class Point:
    """What a model was trained on."""

    step: int
    images_seen: int
    data: dict[str, Any]
    """Fingerprint of the data and their order."""


def run(job: Job) -> None:
    """Train, export and measure what is missing of a job."""
    told = f"row {job.row}, seed {job.seed}"
    check(job)
    for fraction in job.fractions:
        if not (job.point(fraction) / POINT).exists():
            print(f"{told}: training to {fraction:.3g} of its length", flush=True)
            _train(job, fraction)
        for line in (line for line in job.lines if line.fraction == fraction):
            for network in job.measuring.networks:
                if answers(job.measured(line, network), _request(job, line, network)):
                    print(f"{told}: {line.name} is measured already ({network})", flush=True)
                else:
                    print(f"{told}: measuring {line.name} ({network})", flush=True)
                    _measure(job, line, network)


def check(job: Job) -> None:
    """`UserError` where the run in the job's folder is of other settings than the study declares for it."""
    staged = job.fractions != [1.0]
    if staged and job.config.optimizer.schedule != "constant":
        raise UserError(
            f"row {job.row} is measured on the way, and a schedule that ends somewhere else would be another training: "
            "set --optimizer.schedule constant"
        )
    path = job.folder / "config.json"
    if not path.exists():
        return
    found: Any = schema.load(type(job.config), path)
    own = ("train.steps", "train.epochs") if staged else ()
    told = undeclared(job.config, found, left_out=own)
    stages = {_steps(job, fraction) for fraction in job.fractions} if staged else set()
    if staged and found.train.steps not in stages:
        told = f"train.steps: {found.train.steps}, not one of {sorted(stages)}"
    if told:
        raise UserError(
            f"{job.folder} was trained with what row {job.row} at seed {job.seed} does not declare ({told}): choose "
            "another --out, or restore the settings"
        )


def _steps(job: Job, fraction: float) -> int:
    """Optimizer steps up to a point."""
    config = job.config
    count = len(open_source(config.data.source) if isinstance(config, TokenizerRunConfig) else _store(config.data))
    return max(1, round(total_steps(config.train, count) * fraction))


def _store(path: str) -> TokenStore:
    if not path:
        raise UserError("--data is missing: a token store, which fqgan extract makes")
    return TokenStore.open(path)


def _train(job: Job, fraction: float) -> None:
    config = job.config
    if job.fractions != [1.0]:
        config = replace(config, train=replace(config.train, steps=_steps(job, fraction)))
    point = job.point(fraction)
    if isinstance(config, TokenizerRunConfig):
        train_tokenizer(config, job.folder)
    else:
        train_generator(config, job.folder)
    newest = checkpoint.latest(job.folder / "checkpoints")
    assert newest is not None, "training ends with a checkpoint"
    state = schema.load_json(newest / "state.json")
    expected = config.train.steps or _steps(job, fraction)
    if state["step"] != expected:
        raise UserError(
            f"{job.folder} has seen {state['step'] * config.train.batch:,} images, not the "
            f"{expected * config.train.batch:,} of row {job.row}: choose another --out"
        )
    point.parent.mkdir(exist_ok=True)
    with making_folder(point) as temporary:
        if isinstance(config, TokenizerRunConfig):
            save_tokenizer(load_tokenizer(newest), temporary)
        else:
            save_generator(load_generator(newest), temporary)
        facts = {"step": state["step"], "images_seen": state["images_seen"], "data": state["data"]}
        write_text(temporary / POINT, json.dumps(facts, indent=2) + "\n")


def point_of(job: Job, fraction: float) -> Point:
    """What the model at a fraction of the training has seen."""
    facts = schema.load_json(job.point(fraction) / POINT)
    return Point(facts["step"], facts["images_seen"], facts["data"])


def _request(job: Job, line: Line, network: str) -> list[str]:
    """The options that a measurement depends on."""
    chosen = job.measuring
    argv = ["--data", chosen.data, "--features", chosen.networks[network], *chosen.options]
    argv += ["--device", job.config.train.device]
    if isinstance(job.config, GeneratorRunConfig):
        argv += ["--seed", str(job.seed)]
        for name, value in line.sampling.items():
            values = value if isinstance(value, list | tuple) else (value,)
            argv += [f"--{name.replace('_', '-')}", *map(str, values)]
    return argv


def _measure(job: Job, line: Line, network: str) -> None:
    file, request = job.measured(line, network), _request(job, line, network)
    argv = [str(job.point(line.fraction)), *request]
    if isinstance(job.config, TokenizerRunConfig):
        measure(evaluate_tokenizer.main, argv, request, file)
    else:
        samples = job.folder / "samples" / f"{line.name}-{_drawing(request)}"
        measure(evaluate_generator.main, [*argv, "--samples", str(samples)], request, file)


def _drawing(request: list[str]) -> str:
    """Names the samples of a request: those of another network are the same."""
    at = request.index("--features")
    return hashlib.sha256(json.dumps(request[:at] + request[at + 2 :]).encode()).hexdigest()[:8]


def label_of(network: str) -> str:
    """A network's short name, for files and headings."""
    if network.startswith("classifier:"):
        return "classifier"
    return re.sub(r"[^\w@.+-]+", "-", network).strip("-")
