"""A row of the table at one seed: a projector is trained, writes captions, and these are scored."""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.folder import ResumableFolder
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config import LanguageRunConfig, ProjectorRunConfig, UnderstandingSettings
from fqgan.engine.devices import pick_device
from fqgan.evaluation.protocol import read_result, versions, write_result
from fqgan.lab.studies.plan import WATCHING
from fqgan.lab.understanding.banks import BankFolder, map_kind, scaled_features
from fqgan.lab.understanding.captions import CaptionSet, open_captions
from fqgan.lab.understanding.language import LanguageModel, load_language_model
from fqgan.lab.understanding.projector import mean_loss, train_projector, write_captions
from fqgan.lab.understanding.readings import Reading
from fqgan.lab.understanding.scores import score
from fqgan.lab.understanding.words import chosen_splitter


@dataclass(frozen=True)
class Trial:
    """A reading at a seed."""

    reading: Reading
    seed: int
    settings: UnderstandingSettings

    @property
    def config(self) -> ProjectorRunConfig:
        """The training of its projector."""
        train = replace(self.settings.train, seed=self.seed)
        return ProjectorRunConfig(self.reading.model, self.settings.optimizer, train)

    @property
    def folder(self) -> Path:
        """Its run."""
        return self.settings.out / "rows" / self.reading.name / f"seed-{self.seed}"

    @property
    def result(self) -> Path:
        """File of its captions and scores."""
        return self.folder / "measured.json"

    def bank(self, side: str) -> str:
        """Name of the bank that it reads, of the pictures to `train` on or those of the `test`."""
        return f"{side}-{map_kind(self.reading.model)}"


def open_training_set(settings: UnderstandingSettings) -> CaptionSet:
    """The captions to train on."""
    return open_captions(settings.data, "train", settings.images)


def open_test_set(settings: UnderstandingSettings) -> CaptionSet:
    """The captions to measure on."""
    return open_captions(settings.test or settings.data, settings.split, settings.test_images or settings.images)


def bank_folder(settings: UnderstandingSettings) -> BankFolder:
    """The features of all rows."""
    return BankFolder(settings.out / "features")


def check_run(folder: Path, config: LanguageRunConfig | ProjectorRunConfig) -> None:
    """`UserError` where the run in a folder was begun with other settings. A run goes on with some of them changed: a
    row of a table must not."""
    path = folder / "config.json"
    if path.exists():
        run = ResumableFolder(folder, kind="run folder", known=path.exists)
        run.changed(schema.load(type(config), path), config, WATCHING.__contains__)


def run_trial(language: Path, digest: str, trial: Trial) -> None:
    """Train a trial's projector, write its captions and score them, where that is not done.

    Args:
        language: folder of the language model.
        digest: of its files.
    """
    title = f"row {trial.reading.name}, seed {trial.seed}"
    protocol = _protocol(trial, digest)
    with suppress(UserError):
        if {**read_result(trial.result)["protocol"], "versions": None} == {**protocol, "versions": None}:
            say(f"{title}: measured already")
            return
    say(f"{title}: training")
    settings, config, banks = trial.settings, trial.config, bank_folder(trial.settings)
    train_bank, test_bank = (banks.open(trial.bank(side)) for side in ("train", "test"))
    train_features = scaled_features(config.model, train_bank, train_bank)
    test_features = scaled_features(config.model, test_bank, train_bank)
    model = _language_model(language, digest, config.model.prompt, config.train.device, config.train.precision)
    captions, tests = open_training_set(settings), open_test_set(settings)
    depends = {name: str(protocol[name]) for name in ("language_model", "features")}
    content = {**captions.data_fingerprint(), **depends}
    projector = train_projector(config, model, train_features, captions, content, trial.folder)
    written: list[str] = []
    with image_bar(f"{title}: captions", len(tests)) as advance:
        options = {"batch": settings.batch, "beams": settings.beams, "tokens": settings.tokens}
        for part in write_captions(projector, model, test_features, **options):
            written += part
            advance(len(part))
    firsts = [several[0] for several in tests.captions]
    loss = mean_loss(projector, model, test_features, firsts, settings.batch)
    metrics, each = score(written, tests.captions, settings.words)
    result = {"subject": "understanding", "metrics": {**metrics, "loss": loss}, "protocol": protocol}
    result["captions"] = [[text, round(value, 4)] for text, value in zip(written, each, strict=True)]
    write_result(result, trial.result)


def _protocol(trial: Trial, digest: str) -> dict[str, Any]:
    """All that a trial's numbers depend on."""
    settings, banks = trial.settings, bank_folder(trial.settings)
    training = {key: value for key, value in schema.flatten(trial.config).items() if key not in WATCHING}
    return {
        "features": {side: banks.settings(trial.bank(side)) for side in ("train", "test")},
        "language_model": digest,
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in training.items()},
        "captions": {"beams": settings.beams, "tokens": settings.tokens, "batch": settings.batch},
        "words": chosen_splitter(settings.words),
        "device": pick_device(trial.config.train.device).type,
        "versions": versions(),
    }


@functools.lru_cache(maxsize=1)
def _language_model(folder: Path, digest: str, prompt: str, device: str, precision: str) -> LanguageModel:
    """One model for all rows of a process."""
    return load_language_model(folder, prompt, pick_device(device), precision)
