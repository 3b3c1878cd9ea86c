"""One row at one seed: trained where it is missing, measured where that is missing, reused where both are there."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fqgan.base import schema
from fqgan.base.errors import UnreadableError, UserError
from fqgan.base.files import discard, making_folder, write_text
from fqgan.base.printing import say
from fqgan.base.schema import changes
from fqgan.config import GeneratorRunConfig, SamplingConfig, TokenizerRunConfig
from fqgan.config.data import SourceOptions
from fqgan.config.evaluation import GeneratorEvaluation, TokenizerEvaluation
from fqgan.data.fingerprint import data_fingerprint
from fqgan.data.sources import open_source
from fqgan.data.tokens import TokenStore
from fqgan.engine import checkpoint
from fqgan.engine.devices import pick_device
from fqgan.engine.sizes import num_parameters, total_steps
from fqgan.evaluation.sets import Set, check_fit, open_set
from fqgan.generator.model import FAR, load_generator, save_generator
from fqgan.generator.task import train_generator
from fqgan.lab.studies.measurements import Measurement
from fqgan.lab.studies.plan import Line, undeclared
from fqgan.models.find import model_config
from fqgan.nets.measuring import load_network
from fqgan.tokenizer.foreign import is_foreign
from fqgan.tokenizer.load import save_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import train_tokenizer

POINT = "study.json"
"""In an exported point: what it was trained on."""


@dataclass(frozen=True)
class Protocol:
    """How all lines of a study are measured."""

    settings: TokenizerEvaluation | GeneratorEvaluation
    """But for the model, the network, the seed, and how a generator is sampled."""
    networks: Mapping[str, str]
    """Label -> network whose features are compared."""
    keep_samples: bool = False
    """Keep the pictures of generators once all networks have seen them."""


@dataclass(frozen=True)
class Job:
    """A row at a seed."""

    row: str
    seed: int
    config: TokenizerRunConfig | GeneratorRunConfig
    folder: Path
    """Its run."""
    lines: tuple[Line, ...]
    protocol: Protocol

    @property
    def fractions(self) -> list[float]:
        """At which it is measured, rising."""
        return sorted({line.fraction for line in self.lines})

    @property
    def is_staged(self) -> bool:
        """Whether it is measured on the way."""
        return self.fractions != [1.0]

    def point(self, fraction: float) -> Path:
        """Folder of the model at a fraction of the training."""
        return self.folder / "points" / f"{fraction:.6g}"

    def has(self, fraction: float) -> bool:
        """Whether the model at a fraction of the training is there."""
        return (self.point(fraction) / POINT).exists()

    @property
    def trained(self) -> bool:
        """Whether it is trained to its end."""
        return self.has(self.fractions[-1])

    def measured(self, line: Line, network: str) -> Path:
        """File of what a line scored."""
        return self.folder / "measured" / f"{line.name}--{network}.json"


def run(job: Job) -> None:
    """Train, export and measure what is missing of a job."""
    whose = f"row {job.row}, seed {job.seed}"
    check(job)
    for fraction in job.fractions:
        lines = [line for line in job.lines if line.fraction == fraction]
        if not job.has(fraction):
            say(f"{whose}: training to {fraction:.3g} of its length")
            _train(job, fraction, lines)
        for line in lines:
            for network in job.protocol.networks:
                measurement, file = measurement_of(job, line, network), job.measured(line, network)
                if measurement.is_done(file):
                    say(f"{whose}: {line.name} is measured already ({network})")
                else:
                    say(f"{whose}: measuring {line.name} ({network})")
                    measurement.measure(file)
            if not job.protocol.keep_samples:
                _discard_samples(job, line)


def check(job: Job) -> None:
    """`UserError` where the run in the job's folder is of other settings than the study declares for it."""
    staged = job.is_staged
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
    difference = undeclared(job.config, found, left_out=own)
    stages = {fraction: _steps(job, fraction) for fraction in job.fractions} if staged else {}
    if staged and found.train.steps not in stages.values():
        difference = f"train.steps: {found.train.steps}, not one of {sorted(stages.values())}"
    for fraction in filter(job.has, job.fractions):
        point = point_of(job, fraction)
        if point["step"] != stages.get(fraction, point["step"]):
            difference = f"{job.point(fraction)} is of step {point['step']}, not {stages[fraction]}"
        if not difference and (other := changes(point["data"], data_of(job.config))):
            difference = f"data: {other}"
    if difference:
        raise UserError(
            f"{job.folder} was trained with what row {job.row} at seed {job.seed} does not declare ({difference}): "
            "choose another --out, or restore the settings and the data"
        )


def check_measuring(jobs: Sequence[Job]) -> None:
    """`UserError` for data, networks or ways of sampling that the jobs' measuring would refuse after their training."""
    chosen = jobs[0].protocol
    networks = [load_network(network) for network in chosen.networks.values()]
    data, small = chosen.settings.data, chosen.settings.small
    if isinstance(jobs[0].config, TokenizerRunConfig):
        images = Set(data, open_source(data, "validation"))
        for job in jobs:
            assert isinstance(job.config, TokenizerRunConfig), "the rows of a study are of one kind"
            _check_size(images, job.config.model.image_size, small)
        return
    given = open_set(data)
    for job in jobs:
        assert isinstance(job.config, GeneratorRunConfig), "the rows of a study are of one kind"
        store = store_of(job.config)
        size = model_config(store.tokenizer_path, "tokenizer").image_size
        _check_size(given, size, small)
        for network in networks:
            check_fit(given, network, size)
        for line in job.lines:
            SamplingConfig.of(**line.sampling).check(store.codebook_sizes)


def _check_size(given: Set, size: int, small: str) -> None:
    if given.source is None or small != "refuse":
        return
    try:
        side = given.size
    except UnreadableError:  # measuring leaves it out
        return
    if side < size:
        raise UserError(
            f"the first image of {given.name} has a shorter side of {side} pixels, below the {size} of the models: "
            "measure on larger ones, or enlarge them with --measure.small enlarge"
        )


def data_of(config: TokenizerRunConfig | GeneratorRunConfig) -> dict[str, Any]:
    """What tells the data that a row is to see from others."""
    if isinstance(config, TokenizerRunConfig):
        return _fingerprint(config.data.source, SourceOptions.of(config.data))
    return store_of(config).data_fingerprint()


@lru_cache(maxsize=4)
def _fingerprint(source: str, options: SourceOptions) -> dict[str, Any]:
    return data_fingerprint(open_source(source, options=options))


def _steps(job: Job, fraction: float) -> int:
    """Optimizer steps up to a point."""
    config = job.config
    count = len(
        open_source(config.data.source, options=config.data)
        if isinstance(config, TokenizerRunConfig)
        else store_of(config)
    )
    return max(1, round(total_steps(config.train, count) * fraction))


def store_of(config: GeneratorRunConfig) -> TokenStore:
    """The codes that a generator learns. `UserError` where there are none."""
    if not config.data:
        raise UserError("--data is missing: a token store, which fqgan extract makes")
    return TokenStore.open(config.data)


def _train(job: Job, fraction: float, lines: Sequence[Line]) -> None:
    """Train to a point, drop what an earlier model scored there, and export it."""
    config = job.config
    if job.is_staged:
        config = replace(config, train=replace(config.train, steps=_steps(job, fraction)))
    point = job.point(fraction)
    earlier = [each for each in job.fractions if each < fraction]
    before = cpu_seconds(job, earlier[-1]) if earlier else 0.0
    begun = checkpoint.latest(job.folder / "checkpoints")
    if begun and (not earlier or schema.load_json(begun / "state.json")["step"] > _steps(job, earlier[-1])):
        before = math.nan  # an interrupted run: what it took before is not known
    began = time.process_time()
    if isinstance(config, TokenizerRunConfig):
        train_tokenizer(config, job.folder)
    else:
        train_generator(config, job.folder)
    seconds = before + time.process_time() - began
    newest = checkpoint.latest(job.folder / "checkpoints")
    assert newest is not None, "training ends with a checkpoint"
    state = schema.load_json(newest / "state.json")
    expected = config.train.steps or _steps(job, fraction)
    if state["step"] != expected:
        raise UserError(
            f"{job.folder} has seen {state['step'] * config.train.batch:,} images, not the "
            f"{expected * config.train.batch:,} of row {job.row}: choose another --out"
        )
    for line in lines:
        for file in (job.folder / "measured").glob(f"{line.name}--*.json"):
            file.unlink()
        _discard_samples(job, line)
    point.parent.mkdir(exist_ok=True)
    with making_folder(point) as temporary:
        if isinstance(config, TokenizerRunConfig):
            save_tokenizer(FactorizedTokenizer.from_pretrained(newest), temporary)
        else:
            save_generator(load_generator(newest, tokenizer=_named_tokenizer(config)), temporary)
        facts = {name: state[name] for name in ("step", "images_seen", "data")}
        known = pick_device(config.train.device).type == "cpu" and not math.isnan(seconds)
        facts["cpu_seconds"] = round(seconds, 1) if known else None
        write_text(temporary / POINT, json.dumps(facts, indent=2) + "\n")


def point_of(job: Job, fraction: float) -> dict[str, Any]:
    """What the model at a fraction of the training has seen: `step`, `images_seen`, and the `data`'s fingerprint."""
    return schema.load_json(job.point(fraction) / POINT)


def cpu_seconds(job: Job, fraction: float) -> float:
    """Processor time of a row's training to a fraction of it on a CPU, on all threads of the training process; NaN
    where another device trained it, or a run was interrupted."""
    seconds = point_of(job, fraction).get("cpu_seconds")
    return math.nan if seconds is None else seconds


def parameters_of(job: Job) -> int:
    """Of the model that is trained, feature heads included."""
    point = job.point(job.fractions[-1])
    with torch.device("meta"):
        if isinstance(job.config, TokenizerRunConfig):
            model: torch.nn.Module = FactorizedTokenizer(model_config(point, "tokenizer"))
        else:
            model = FAR(model_config(point, "generator"))
    return num_parameters(model)


def measurement_of(job: Job, line: Line, network: str) -> Measurement:
    """The evaluation of a line with a network."""
    chosen = job.protocol
    own: dict[str, Any] = {"checkpoint": job.point(line.fraction), "features": chosen.networks[network]}
    if isinstance(chosen.settings, GeneratorEvaluation):
        assert isinstance(job.config, GeneratorRunConfig), "generators are evaluated as such"
        own |= {"seed": job.seed, "tokenizer": _named_tokenizer(job.config), **line.sampling}
    found = Measurement(replace(chosen.settings, **own), job.config.train.device)
    return found.drawn_into(job.folder / "samples", line.name)


def _named_tokenizer(config: GeneratorRunConfig) -> str:
    """The tokenizer that no export carries, if it is one of others."""
    return config.tokenizer if is_foreign(config.tokenizer) else ""


def _discard_samples(job: Job, line: Line) -> None:
    """Those of this measurement and of earlier ones."""
    for folder in (job.folder / "samples").glob(f"{line.name}-{'[0-9a-f]' * 8}"):
        discard(folder)


def labelled(networks: Sequence[str]) -> dict[str, str]:
    """A short name for files and headings -> network. `UserError` where two would have one label."""
    labels = [
        "classifier" if network.startswith("classifier:") else re.sub(r"[^\w@.+-]+", "-", network).strip("-")
        for network in networks
    ]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"two networks would be called {twice[0]} in the tables: measure with one of them")
    return dict(zip(labels, networks, strict=True))
