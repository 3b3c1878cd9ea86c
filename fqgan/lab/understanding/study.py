"""Table 6: what a frozen language model can tell of pictures from a tokenizer's features and codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fqgan.base.errors import UserError
from fqgan.config import TINY, ProjectorConfig, UnderstandingSettings
from fqgan.engine.devices import pick_device
from fqgan.lab.studies.plan import check_rows
from fqgan.lab.studies.workers import check_alone, spread
from fqgan.lab.understanding import EXTRA
from fqgan.lab.understanding.banks import MapKind, map_kind, network_reader, tokenizer_reader
from fqgan.lab.understanding.captions import CaptionSet, knows_splits
from fqgan.lab.understanding.language import digest_of, find_language_model
from fqgan.lab.understanding.readings import Reading, readings_of
from fqgan.lab.understanding.report import UnderstandingResult, write_report
from fqgan.lab.understanding.scores import require_scores
from fqgan.lab.understanding.tiny import train_language_model
from fqgan.lab.understanding.trials import Trial, bank_folder, check_run, open_test_set, open_training_set, run_trial
from fqgan.models import hub
from fqgan.models.find import find
from fqgan.nets.weights import require
from fqgan.tokenizer.model import FactorizedTokenizer


def study_understanding(settings: UnderstandingSettings) -> UnderstandingResult:
    """Train and measure the rows that are missing under `settings.out`, and write the table and a page of captions.

    The same settings resume what was interrupted, and reuse finished rows.

    Args:
        settings: for the small language model (`lm="tiny"`) with `optimizer` and `train` of `TINY_PROJECTOR`, which the
            command takes by itself.

    Raises:
        UserError: settings that make no sense or differ from those that `out` was begun with; a model, pictures,
            captions or a package that is missing; `out` in use by another process.
    """
    settings.check()
    check_alone()
    require("transformers", EXTRA)
    require_scores()
    settings = replace(settings, tokenizer=str(hub.local(settings.tokenizer)))
    model = ProjectorConfig(projector=settings.projector, prompt=settings.prompt)
    readings = readings_of(find(settings.tokenizer, "tokenizer").config, model, settings.subsets)
    check_rows(settings.only, [reading.name for reading in readings])
    readings = [reading for reading in readings if not settings.only or reading.name in settings.only]
    if not settings.test and not knows_splits(settings.data):
        raise UserError(f"--test is missing: {settings.data} has no split of its own to measure on")
    captions = {"train": open_training_set(settings), "test": open_test_set(settings)}
    trials = [Trial(reading, seed, settings) for seed in range(settings.seeds) for reading in readings]
    for trial in trials:  # before anything is trained
        check_run(trial.folder, trial.config)
    language = _language_folder(settings, captions["train"])
    _fill_banks(settings, readings, captions)
    gpus = torch.cuda.device_count() if pick_device(settings.train.device).type == "cuda" else 0
    run = partial(run_trial, language, digest_of(language))
    spread(run, trials, settings.processes or max(1, gpus), gpus)
    return write_report(readings, trials, TINY if settings.lm == TINY else str(language))


def _language_folder(settings: UnderstandingSettings, captions: CaptionSet) -> Path:
    """The language model's; the small one is trained where it is missing."""
    if settings.lm != TINY:
        return find_language_model(settings.lm)
    run = settings.out / "lm"
    config = replace(settings.language, train=replace(settings.language.train, device=settings.train.device))
    check_run(run, config)
    return train_language_model(config, captions, run)


def _fill_banks(
    settings: UnderstandingSettings, readings: Sequence[Reading], captions: Mapping[str, CaptionSet]
) -> None:
    """Write the features that the rows read, where they are not there yet."""
    banks, device = bank_folder(settings), pick_device(settings.train.device)
    tokenizer = FactorizedTokenizer.from_pretrained(settings.tokenizer, device=device)
    kinds: list[MapKind] = sorted({map_kind(reading.model) for reading in readings})
    for kind in kinds:
        if kind == "network":
            reader = network_reader(settings.network_size, device)
        else:
            reader = tokenizer_reader(kind, tokenizer, settings.size, settings.small)
        for side, pictures in captions.items():
            banks.fill(
                f"{side}-{kind}",
                reader,
                pictures.source,
                pictures.data_fingerprint(),
                device=device,
                batch=settings.batch,
                workers=settings.workers,
            )
