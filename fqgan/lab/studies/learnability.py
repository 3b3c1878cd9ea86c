"""Which tokenizer's codes are easy to generate: small generators on each, trained alike, beside what the codes tell."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

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
from fqgan.engine.sizes import num_parameters
from fqgan.evaluation.likelihood import evaluate_likelihood
from fqgan.evaluation.protocol import Evaluation, read_result
from fqgan.evaluation.robustness import evaluate_codes
from fqgan.generator.model import FAR
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.studies.figures import Panel, Series, write_curves
from fqgan.lab.studies.jobs import Job, labelled
from fqgan.lab.studies.plan import Line, Row, Study
from fqgan.lab.studies.results import Column, cell, collect, known_columns
from fqgan.lab.studies.settings import LearnabilityOptions, MeasureOptions, StudyOptions
from fqgan.lab.studies.tables import Table, file_stem, markdown
from fqgan.lab.studies.trained import jobs_of, train_study
from fqgan.models.find import MODEL, model_config
from fqgan.nets.weights import require
from fqgan.tokenizer.extraction import extract
from fqgan.tokenizer.foreign import is_foreign

GENERATORS = "generators"
"""Folder of the generators, a study of its own."""
_UNGUIDED = 1.0
_FEWEST = 4  # tokenizers of which a rank correlation is told
_BITS = ("entropy", "left", "upper", "other factors")
_NO_NUMBERS = ("checkpoint", "workers", "batch")  # settings of `evaluate codes` that say nothing of its numbers
Codes = dict[str, float]
"""What `evaluate codes` tells of a tokenizer, by names for the table; not a number where it has no such number."""
# half-length noise must not decide: no dropout, a rate that suits few steps
_RECIPE: dict[str, Any] = {"model": {"dropout": 0.0}, "optimizer": {"kind": "muon", "lr": 3e-3}}
_QUIET: dict[str, Any] = {"image_every": 0, "validate_every": 0, "checkpoint_every": 250, "keep_last": 1}


@dataclass(frozen=True)
class Learned:
    """A generator of one width on one tokenizer's codes: one number a seed each."""

    parameters: int
    bits: list[float]
    """Of a held-out image's codes."""
    unguided: list[float]
    guided: list[float]
    """At the best guidance scale."""
    scale: float
    """The best one, by the mean over the seeds."""


def learnability(options: LearnabilityOptions) -> list[Path]:
    """Codes of each tokenizer into stores, generators of each width on them with the same pictures, classes, steps and
    seeds, and the table; returns the files, the table first. What is there already is used again.

    `UserError` for packages that are missing and data that cannot be read, and for tokenizers whose stores cannot be
    compared.
    """
    require_matplotlib()
    if len(options.models) >= _FEWEST:
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
    return _written(options, learned, codes, column)


def study_of(options: LearnabilityOptions, stores: Mapping[str, Path]) -> tuple[Study, GeneratorRunConfig]:
    """The generators' study: a row for each tokenizer and width, a line for each guidance scale."""
    base = child(presets.get_generator(options.preset), **_RECIPE)
    base = replace(base, data=str(next(iter(stores.values()))))
    base = child(
        base,
        train={**_QUIET, "steps": options.steps, "epochs": 0.0, "batch": options.train_batch, "device": options.device},
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
                _parameters(job), [bits[row, seed] for seed in seeds], distances[_UNGUIDED], distances[scale], scale
            )
    return found


def _parameters(job: Job) -> int:
    with torch.device("meta"):
        return num_parameters(FAR(model_config(job.point(1.0), "generator")))


def _written(
    options: LearnabilityOptions,
    learned: Mapping[tuple[str, int], Learned],
    codes: Mapping[str, Codes],
    column: Column,
) -> list[Path]:
    """Table and figure; `column` is that of the distance."""
    label, rows, data = column.label, [], []
    for (name, width), each in learned.items():
        own = codes[name]
        rows.append(
            [
                name,
                str(width),
                f"{each.parameters / 1e6:.2f}M",
                *(cell(column, values) for values in (each.bits, each.unguided, each.guided)),
                f"{each.scale:g}",
                *(_shown(measure, value) for measure, value in own.items()),
            ]
        )
        data += [
            [name, width, each.parameters, seed, *values, each.scale, *own.values()]
            for seed, values in enumerate(zip(each.bits, each.unguided, each.guided, strict=True))
        ]
    head = ["tokenizer", "width", "parameters", "bits an image ↓", f"{label}, unguided ↓", f"{label}, guided ↓"]
    measures = list(next(iter(codes.values())))
    head += ["at scale", *(f"{each} (bits)" if each in _BITS else each for each in measures)]
    keys = ["tokenizer", "width", "parameters", "seed", "bits_per_image", "unguided", "guided", "scale"]
    keys += [each.replace(" ", "_") for each in measures]
    notes = (
        f"All generators were trained for {options.steps:,} steps of {options.train_batch} with the same pictures, "
        "classes and seeds. Bits an image: of held-out images' codes under the generator. Entropy: of the codes of a "
        "position, summed over the factors; left, upper, other factors: what the code of the left or upper neighbour, "
        "or the other codes of the position, tell of a code, above chance, summed over the factors. They are counted, "
        "which needs many more positions than codes. Reconstruction, wrong, near: the same distance of reconstructions "
        f"from held-out images, of whole codes and with {options.share:.0%} of them replaced, by any or near ones."
    )
    notes += _correlations(options, learned, codes)
    panels = [
        Panel(title, [_series(name, learned, options, field) for name in options.models])
        for title, field in (("bits an image", "bits"), (f"{label}, unguided", "unguided"))
    ]
    table = Table("Learnability of codes", head, rows, keys, data, notes)
    return [*table.write(options.out), *write_curves(options.out, panels, "parameters (million)")]


def _shown(measure: str, value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}" if measure == "usage" else f"{value:.2f}"


def _series(name: str, learned: Mapping[tuple[str, int], Learned], options: LearnabilityOptions, field: str) -> Series:
    own = [learned[name, width] for width in options.widths]
    return Series(name, [each.parameters / 1e6 for each in own], [getattr(each, field) for each in own])


def _correlations(
    options: LearnabilityOptions,
    learned: Mapping[tuple[str, int], Learned],
    codes: Mapping[str, Codes],
) -> str:
    """How each cheap number ranks the tokenizers, against their unguided distance at the largest width."""
    if len(options.models) < _FEWEST:
        return f" With fewer than {_FEWEST} tokenizers no rank correlation is told."
    from scipy.stats import spearmanr  # slow to import

    def means(field: str, width: int) -> list[float]:
        found = [getattr(learned[name, width], field) for name in options.models]
        return [fmean(each) for each in found]

    widest = max(options.widths)
    cheap = {f"bits an image, width {width}": means("bits", width) for width in options.widths}
    cheap |= {
        f"distance unguided, width {width}": means("unguided", width) for width in options.widths if width < widest
    }
    for measure in next(iter(codes.values())):
        cheap[measure] = [own[measure] for own in codes.values()]
    target, rows = means("unguided", widest), []
    for measure, values in cheap.items():
        known = len(set(values)) > 1 and not any(map(math.isnan, values))
        rank = float(spearmanr(values, target).statistic) if known else math.nan  # pyright: ignore
        rows.append([measure, "–" if math.isnan(rank) else f"{rank:+.2f}"])
    head = ["measure", f"rank correlation with the unguided distance, width {widest}"]
    return f"\n\n## What ranks the tokenizers\n\n{markdown(head, rows)}"
