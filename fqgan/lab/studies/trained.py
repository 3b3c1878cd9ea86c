"""A study of rows that are trained: all jobs, then the table, the orderings and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig, GeneratorRunConfig, TokenizerRunConfig
from fqgan.config.evaluation import GeneratorEvaluation, TokenizerEvaluation
from fqgan.data.sources import default_validation
from fqgan.engine.devices import pick_device
from fqgan.evaluation.protocol import read_result
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.studies import jobs as work
from fqgan.lab.studies.figures import Panel, Series, write_curves, write_dots
from fqgan.lab.studies.jobs import Job, Protocol, check_measuring, cpu_seconds, labelled, parameters_of, point_of
from fqgan.lab.studies.measurements import input_fingerprints, study_folder
from fqgan.lab.studies.plan import Row, Run, Study, has_setting, load_rows, settings_of, value_at
from fqgan.lab.studies.results import (
    DRAWN,
    MARK,
    PERCEPTUAL,
    Column,
    Numbers,
    cell,
    check_alike,
    collect,
    contaminated,
    known_columns,
    orderings_text,
)
from fqgan.lab.studies.settings import MeasureOptions, StudyOptions
from fqgan.lab.studies.tables import Table, markdown
from fqgan.lab.studies.workers import check_alone
from fqgan.lab.studies.workers import spread as over_processes


def train_study(study: Study, base: Run, options: StudyOptions) -> list[Path]:
    """Train and measure what is missing under `out/rows/ROW/seed-N`, and write table and figure; returns their files.

    Args:
        base: the settings that the rows differ from.

    Raises:
        UserError: rows that differ in more than they declare, data or networks that are not there, and runs of other
            settings in the folder.
    """
    if options.rows != Path():
        study = study.extended(load_rows(options.rows))
    protocol = protocol_of(base, options.measure)
    require_matplotlib()
    check_alone()
    input_fingerprints.cache_clear()  # the files may have changed since an earlier study of this process
    settings = settings_of(study, base)
    chosen = study.only(options.only) if options.only else study
    jobs = _jobs(chosen, settings, options, protocol)
    for job in jobs:  # before hours of training
        work.check(job)
    check_alike(study, jobs)
    check_measuring(jobs)
    gpus = torch.cuda.device_count() if pick_device(base.train.device).type == "cuda" else 0
    with study_folder(options.out):
        over_processes(work.run, jobs, options.processes or max(1, gpus), gpus)
        return report(chosen, jobs, options.out)


def jobs_of(study: Study, base: Run, options: StudyOptions) -> list[Job]:
    """The jobs of a study that `train_study` has finished."""
    return _jobs(study, settings_of(study, base), options, protocol_of(base, options.measure))


def _jobs(study: Study, settings: Mapping[str, Any], options: StudyOptions, protocol: Protocol) -> list[Job]:
    return [
        Job(
            row.name,
            seed,
            replace(settings[row.name], train=replace(settings[row.name].train, seed=seed)),
            options.out / "rows" / row.name / f"seed-{seed}",
            tuple(line for line in study.lines if line.row == row.name),
            protocol,
        )
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for row in study.rows
        if study.fractions(row.name)
    ]


def protocol_of(base: TokenizerRunConfig | GeneratorRunConfig, measure: MeasureOptions) -> Protocol:
    """How all rows are measured. `UserError` where the data to train or to measure on are missing."""
    networks = labelled([*measure.features, *([f"classifier:{measure.classifier}"] if measure.classifier else [])])
    shared: dict[str, Any] = {name: getattr(measure, name) for name in _SHARED}
    nowhere = Path()  # each line has a checkpoint of its own
    if isinstance(base, TokenizerRunConfig):
        if not base.data.source:
            raise UserError("--data.source is missing: photos, cifar10, a folder of images, parquet files or tars")
        data = measure.data or base.data.validation or default_validation(base.data.source)
        if not data:
            raise UserError("--data.validation is missing: the images to measure on")
        perceptual: Any = base.loss.perceptual if base.loss.perceptual_weight else "none"
        settings = TokenizerEvaluation(checkpoint=nowhere, data=data, perceptual=perceptual, **shared)
    else:
        if not base.data:
            raise UserError("--data is missing: a token store, which fqgan extract makes")
        if not measure.data:
            raise UserError("--measure.data is missing: real images to compare the samples with")
        settings = GeneratorEvaluation(checkpoint=nowhere, data=measure.data, num=measure.num, **shared)
    return Protocol(settings, networks, measure.keep_samples)


_SECONDS = Column("cpu_seconds", "CPU s", 0, 0)
_SHARED = ("limit", "kept", "batch", "workers", "precision", "small")


def report(study: Study, jobs: Sequence[Job], out: Path) -> list[Path]:
    """Table and figure of measured jobs."""
    numbers = collect(study, jobs)
    networks = jobs[0].protocol.networks
    marked = [label for label, network in networks.items() if contaminated(network, jobs)]
    if study.kind == "tokenizer":
        marked.append(PERCEPTUAL)  # measured with the rows' own loss
    shown = known_columns(networks, numbers.values(), marked)
    deciding = [column for column in shown if column.key.startswith(DRAWN)]
    seen = {line.name: point_of(job, line.fraction)["images_seen"] for job in jobs for line in job.lines}
    took = {(line.name, job.seed): cpu_seconds(job, line.fraction) for job in jobs for line in job.lines}
    sizes = {row: parameters_of(job) for row, job in {job.row: job for job in jobs}.items()}
    keys = sorted({key for scores in numbers.values() for key in scores})
    rows, data = [], list[list[object]]()
    for line in study.lines:
        scores = {seed: scores for (name, seed), scores in sorted(numbers.items()) if name == line.name}
        cells = [cell(column, [each.get(column.key, float("nan")) for each in scores.values()]) for column in shown]
        paper = [str(line.paper.get(key, "–")) for key in study.paper]
        seconds = cell(_SECONDS, [took[line.name, seed] for seed in scores])
        size = f"{sizes[line.row] / 1e6:.2f}M"
        rows.append([line.label, f"{seen[line.name]:,}", size, seconds, str(len(scores)), *cells, *paper])
        given = [line.paper.get(key, "") for key in study.paper]
        for seed, each in scores.items():
            cost = [sizes[line.row], took[line.name, seed]]
            data.append([line.name, seed, *cost, *(each.get(key, "") for key in keys), *given])
    headings = [*(column.heading for column in shown), *(f"paper: {heading}" for heading in study.paper.values())]
    table = Table(
        study.title,
        ["model", "images seen", "parameters", _SECONDS.label, "seeds", *headings],
        rows,
        ["line", "seed", "parameters", "cpu_seconds", *keys, *(f"paper_{key}" for key in study.paper)],
        data,
        _notes(study, jobs, orderings_text(study.orderings, numbers, deciding), shown),
    )
    return [*table.write(out), *_figure(study, numbers, deciding, seen, out)]


def _notes(study: Study, jobs: Sequence[Job], orderings: Sequence[str], shown: Sequence[Column]) -> str:
    parts = ["Mean ± standard deviation over the seeds; all lines of a seed share data, their order and the seed."]
    if any(MARK in column.label for column in shown):
        parts.append(
            f"{MARK} By a network that teaches a row, stands behind its discriminator, or is or may have been its "
            "perceptual loss: no ground for a conclusion."
        )
    parts.append(f"Measured on {_protocol(jobs[0])}.")
    if study.paper:
        parts.append(
            "The paper's numbers are of ImageNet at 256 pixels, with Inception's features and the paper's own lengths: "
            "they compare with ours only where ours are of these too."
        )
    parts += orderings
    trained = {job.row: job.config for job in jobs}
    rows = [
        [row.name, row.parent or "the study", _declared(row, trained[row.name])]
        for row in study.rows
        if row.name in trained
    ]
    parts.append(f"## Rows\n\n{markdown(['row', 'parent', 'declared difference'], rows)}")
    return "\n\n".join(parts)


def _protocol(job: Job) -> str:
    networks = []
    sides: Mapping[str, Any] = {}
    for network in job.protocol.networks:
        sides = read_result(job.measured(job.lines[0], network))["protocol"]
        networks.append(f"{network} ({sides['features']['weights'][:12]})")
    data = sides.get("data") or sides.get("reference") or {}
    count = f"{data['count']:,} images of " if "count" in data else ""
    return f"{count}{job.protocol.settings.data} at {sides['size']} pixels; networks: {', '.join(networks)}"


def _declared(row: Row, trained: Any) -> str:
    """A row's changes; of one with a config of its own what that has, which may lack one, such as a second factor."""
    values = dict(row.changes)
    if row.config:
        values = {key: value_at(trained, key) if has_setting(trained, key) else () for key in values}
    return ", ".join(f"`{key}` = {_short(value)}" for key, value in values.items()) or "–"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = FactorConfig(**value) if "codebook_size" in value else ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_short, value)) or "none"
    codes = getattr(value, "codebook_size", None)
    if codes is None:
        return f'"{value}"' if isinstance(value, str) else str(value)
    taught = f", taught by {value.teacher}" if value.teacher else ""
    return f"{value.name} ({codes} codes of {value.code_dim}, adapter depth {value.adapter_depth}{taught})"


def _figure(study: Study, numbers: Numbers, drawn: Sequence[Column], seen: Mapping[str, int], out: Path) -> list[Path]:
    def values(line: str, column: Column) -> list[float]:
        return [scores[column.key] for (name, _), scores in sorted(numbers.items()) if name == line]

    if max(len(study.fractions(row.name)) for row in study.rows) == 1:
        series = {c.key: [Series(line.label, [0], [values(line.name, c)]) for line in study.lines] for c in drawn}
        return write_dots(out, [Panel(column.heading, series[column.key]) for column in drawn])
    panels = []
    for column in drawn:
        curves = []
        for row in study.rows:
            lines = sorted((line for line in study.lines if line.row == row.name), key=lambda line: line.fraction)
            if lines:
                images = [seen[line.name] for line in lines]
                curves.append(Series(row.label or row.name, images, [values(line.name, column) for line in lines]))
        panels.append(Panel(column.heading, curves))
    return write_curves(out, panels, "images seen")
