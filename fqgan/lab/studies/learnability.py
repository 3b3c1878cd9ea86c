"""Which tokenizer's codes are easy to generate: small generators on each, trained alike, beside what the codes tell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fqgan.base.errors import UserError
from fqgan.base.files import file_sha256
from fqgan.base.printing import say, say_lines
from fqgan.base.schema import to_dict
from fqgan.config import GeneratorRunConfig, presets
from fqgan.config.devices import Device
from fqgan.config.evaluation import CodesEvaluation, LikelihoodEvaluation
from fqgan.config.presets import child
from fqgan.config.verbs import ExtractionSettings
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World
from fqgan.engine.session import running
from fqgan.evaluation.likelihood import evaluate_likelihood
from fqgan.evaluation.protocol import Evaluation, read_result
from fqgan.evaluation.robustness import evaluate_codes
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.studies.jobs import Job, labelled, parameters_of
from fqgan.lab.studies.learned import FEWEST, Codes, Learned, write
from fqgan.lab.studies.plan import Line, Row, Study
from fqgan.lab.studies.results import collect, known_columns
from fqgan.lab.studies.settings import LearnabilityOptions, MeasureOptions, StudyOptions
from fqgan.lab.studies.tables import file_stem
from fqgan.lab.studies.trained import jobs_of, train_study
from fqgan.models.find import MODEL
from fqgan.nets.weights import require
from fqgan.tokenizer.extraction import extract
from fqgan.tokenizer.foreign import is_foreign

GENERATORS = "generators"
"""Folder of the generators, a study of its own."""
_UNGUIDED = 1.0
_NO_NUMBERS = ("checkpoint", "workers", "batch")  # settings of `evaluate codes` that say nothing of its numbers
# half-length noise must not decide: no dropout, a rate that suits few steps
_RECIPE: dict[str, Any] = {"model": {"dropout": 0.0}, "optimizer": {"kind": "muon", "lr": 3e-3}}
_QUIET: dict[str, Any] = {"image_every": 0, "validate_every": 0, "checkpoint_every": 250, "keep_last": 1}


def learnability(options: LearnabilityOptions) -> list[Path]:
    """Codes of each tokenizer into stores, generators of each width on them with the same pictures, classes, steps and
    seeds, and the table; returns the files, the table first. What is there already is used again.

    `UserError` for packages that are missing and data that cannot be read, and for tokenizers whose stores cannot be
    compared.
    """
    require_matplotlib()
    if len(options.models) >= FEWEST:
        require("scipy", "report")
    stores = {name: _stores(name, path, options) for name, path in options.models.items()}
    study, base = study_of(options, {name: pair[0] for name, pair in stores.items()})
    own = StudyOptions(
        out=options.out / GENERATORS,
        seeds=options.seeds,
        processes=options.processes,
        measure=MeasureOptions(
            features=options.features,
            data=options.validation_data,
            limit=options.limit,
            num=options.num,
            kept=0,
            workers=options.workers,
            small=options.small,
            batch=options.batch,
        ),
    )
    train_study(study, base, own)
    jobs = jobs_of(study, base, own)
    held_out = {row_name(name, width): pair[1] for name, pair in stores.items() for width in options.widths}
    bits = {(job.row, job.seed): _bits(job, held_out[job.row], options) for job in jobs}
    codes = {name: _codes(name, stores[name][1], options) for name in options.models}
    column = known_columns(labelled(options.features), collect(study, jobs).values(), [])[0]
    learned = _learned(study, jobs, bits, column.key, options)
    return write(options, learned, codes, column)


def study_of(options: LearnabilityOptions, stores: Mapping[str, Path]) -> tuple[Study, GeneratorRunConfig]:
    """The generators' study: a row for each tokenizer and width, a line for each guidance scale."""
    base = child(presets.get_generator(options.preset), **_RECIPE)
    base = replace(base, data=str(next(iter(stores.values()))))
    base = child(
        base,
        train={
            **_QUIET,
            "steps": options.steps,
            "epochs": 0.0,
            "batch": options.train_batch,
            "precision": options.train_precision,
            "device": options.device,
        },
    )
    rows, lines = [], list[Line]()
    for name, store in stores.items():
        for width in options.widths:
            heads = max(1, width // 64)
            changes = {"data": str(store), "model.width": width, "model.heads": heads}
            changes |= {"tokenizer": str(options.models[name])} if is_foreign(options.models[name]) else {}
            row = Row(row_name(name, width), "", changes, label=f"{name}, width {width}")
            rows.append(row)
            for scale in (_UNGUIDED, *options.scales):
                sampling = {"cfg_scale": (scale,), "temperature": (1.0,)}
                lines.append(
                    Line(line_name(row.name, scale), row.name, row.label, f"guidance {scale:g}", 1.0, sampling)
                )
    return Study("learnability", "Generators on the codes of tokenizers", "generator", tuple(rows), tuple(lines)), base


def row_name(name: str, width: int) -> str:
    """Of a tokenizer's generator."""
    return f"{file_stem(name)}-w{width}"


def line_name(row: str, scale: float) -> str:
    """Of a generator's pictures at a guidance scale."""
    return f"{row}-g{scale:g}"


def _stores(name: str, path: Path, options: LearnabilityOptions) -> tuple[Path, Path]:
    """The token stores of the training and the validation images."""
    found: list[Path] = []
    splits: tuple[tuple[Literal["train", "validation"], str], ...] = (
        ("train", options.data),
        ("validation", options.validation_data),
    )
    for split, data in splits:
        settings = ExtractionSettings(
            checkpoint=path,
            data=data,
            out=options.out / "stores" / file_stem(name) / split,
            split=split,
            size=options.size,
            workers=options.workers,
            small=options.small,
            device=options.device,
        )
        say(f"{name}: codes of the {split} images")
        with running(options.device) as world:
            say_lines(extract(settings, world).summary)
        found.append(settings.out)
    return found[0], found[1]


def _kept(
    file: Path, request: dict[str, Any], measure: Callable[[World], Evaluation], device: Device
) -> dict[str, Any]:
    """The metrics of an evaluation, measured where they were not yet for the same request."""
    try:
        result = read_result(file)
        if result.get("request") == request:
            return result["metrics"]
    except UserError:
        pass
    with running(device) as world:
        found = measure(world)
    found.write(file, request=request)
    return found.metrics


def _bits(job: Job, store: Path, options: LearnabilityOptions) -> float:
    """Bits of a held-out image's codes under a generator."""
    point = job.point(1.0)
    settings = LikelihoodEvaluation(
        checkpoint=point, data=str(store), images=options.limit, batch=options.batch, workers=options.workers
    )
    request = {
        "images": options.limit,
        "store": TokenStore.open(store).data_fingerprint(),
        "generator": file_sha256(point / MODEL),
    }
    file = job.folder / "measured" / "likelihood.json"
    return _kept(file, request, partial(evaluate_likelihood, settings), options.device)["bits_per_image"]


def _codes(name: str, store: Path, options: LearnabilityOptions) -> Codes:
    """What a tokenizer's codes of the held-out images tell of each other, and how it decodes wrong ones."""
    settings = CodesEvaluation(
        checkpoint=options.models[name],
        data=options.validation_data,
        size=TokenStore.open(store).manifest.options.image_size,
        features=options.features[0],
        perceptual="none",
        shares=(options.share,),
        limit=options.limit,
        small=options.small,
        batch=options.batch,
        workers=options.workers,
        precision=options.precision,
    )
    numbers = {each: value for each, value in to_dict(settings).items() if each not in _NO_NUMBERS}
    request = {**numbers, "store": TokenStore.open(store).data_fingerprint()}
    file = options.out / "codes" / f"{file_stem(name)}.json"
    found = _kept(file, json.loads(json.dumps(request)), partial(evaluate_codes, settings), options.device)
    distance = "fid" if "fid" in found else "frechet"
    kinds = {"any": f"{options.share:.3g} wrong", "near": f"{options.share:.3g} near"}
    return {
        "reconstruction": found[distance],
        **{text: found.get(f"{distance} {kind} {options.share:g}", math.nan) for kind, text in kinds.items()},
        "entropy": found["entropy"],
        "left": found["left"],
        "upper": found["upper"],
        "other factors": found["other"],
        "usage": found["usage"],
    }


def _learned(
    study: Study, jobs: Sequence[Job], bits: Mapping[tuple[str, int], float], key: str, options: LearnabilityOptions
) -> dict[tuple[str, int], Learned]:
    """(tokenizer, width) -> what its generators reached."""
    numbers, seeds = collect(study, jobs), sorted({job.seed for job in jobs})
    found = {}
    for name in options.models:
        for width in options.widths:
            row = row_name(name, width)
            distances = {
                scale: [numbers[line_name(row, scale), seed][key] for seed in seeds]
                for scale in (_UNGUIDED, *options.scales)
            }
            scale = min(options.scales, key=lambda each: sum(distances[each]))
            job = next(job for job in jobs if job.row == row)
            found[name, width] = Learned(
                parameters_of(job),
                [bits[row, seed] for seed in seeds],
                distances[_UNGUIDED],
                distances[scale],
                scale,
            )
    return found
