"""Models that are there, evaluated under one protocol: Tables 1 and 2 and Fig. 1 of the paper."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.config.evaluation import GeneratorEvaluation, TokenizerEvaluation
from fqgan.data.fingerprint import digest
from fqgan.engine.sizes import num_parameters
from fqgan.generator.model import load_generator
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.studies.figures import Panel, Series, write_curves, write_dots
from fqgan.lab.studies.jobs import labelled
from fqgan.lab.studies.measurements import Measurement, OneProtocol, input_fingerprints, scores_of, study_folder
from fqgan.lab.studies.paper import TABLE_1, TABLE_2, rows_of_generator, rows_of_tokenizer
from fqgan.lab.studies.results import DRAWN, MARK, PERCEPTUAL, Column, known_columns, may_have_taught
from fqgan.lab.studies.settings import ComparisonOptions, GeneratorsOptions, TokenizersOptions
from fqgan.lab.studies.tables import Table, file_stem
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.protocol import Layout


@dataclass(frozen=True)
class Compared:
    """A model in the table."""

    name: str
    checkpoint: Path
    facts: tuple[str, ...]
    """What the table says of it beside the numbers."""
    fingerprint: str
    """Of its weights and those of the tokenizer that decodes for it: other weights are measured anew."""
    tokenizer: Layout
    """Its own, or that of its codes."""
    paper: tuple[int, ...]
    """Rows of the paper's table that are of its architecture, by number."""


Scores = dict[str, dict[str, float]]
"""Model -> metric -> value."""
PaperRow = tuple[str, tuple[str, ...], Mapping[str, str]]
"""Model, its facts, and numbers by the key of a column without its network."""

_PAPER_COLUMNS = {
    "tokenizers": {"fid": "paper: rFID ↓", "psnr": "paper: PSNR (dB) ↑"},
    "generators": {
        "fid": "paper: gFID ↓",
        "inception_score": "paper: IS ↑",
        "precision": "paper: precision ↑",
        "recall": "paper: recall ↑",
    },
}
"""Columns for the paper's numbers that no column of ours is comparable with, such as FID without Inception."""
_FACTS = {
    "tokenizers": ("downsampling", "codes", "code dimension", "parameters"),
    "generators": ("tokenizer", "parameters"),
}


def tokenizers(options: TokenizersOptions) -> list[Path]:
    """Table 1 and Fig. 1 with the tokenizers that the options name. Returns the files, the table first."""
    models = []
    for name, path in options.models.items():
        tokenizer = load_tokenizer(path)
        config = tokenizer.config
        sizes, parameters = tokenizer.codebook_sizes, num_parameters(tokenizer)
        codes = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 < len(sizes) else " + ".join(map(str, sizes))
        dims = sorted({factor.code_dim for factor in config.factors} - {0})
        size = f"{parameters / 1e6:.1f}M" if parameters else ""
        facts = (str(config.downsampling), codes, ", ".join(map(str, dims)), size)
        facts = tuple(fact or "–" for fact in facts)
        models.append(Compared(name, path, facts, tokenizer.fingerprint(), config, rows_of_tokenizer(config)))
    paper = [(name, (ds, codes, dim, "–"), {"fid": fid, "psnr": psnr}) for name, ds, codes, dim, fid, psnr in TABLE_1]
    return _compare("tokenizers", models, TokenizerEvaluation, options, paper)


def generators(options: GeneratorsOptions) -> list[Path]:
    """Table 2 with the generators that the options name. Returns the files, the table first. `UserError` for one
    without a tokenizer."""
    models = []
    for name, path in options.models.items():
        generator = load_generator(path, tokenizer=options.tokenizer)
        if not generator.has_tokenizer:
            raise UserError(f"{name} carries no tokenizer, as released files don't: name its own with --tokenizer")
        facts = (generator.tokenizer.fingerprint()[:8], f"{num_parameters(generator) / 1e6:.1f}M")
        weights = digest([weights_fingerprint(generator.state_dict()), generator.tokenizer.fingerprint()])
        own = rows_of_generator(generator.config)
        models.append(Compared(name, path, facts, weights, generator.tokenizer.config, own))
    keys = ("fid", "inception_score", "precision", "recall")
    paper: list[PaperRow] = [
        (name, ("–", size), dict(zip(keys, numbers, strict=True))) for name, size, *numbers in TABLE_2
    ]
    return _compare("generators", models, GeneratorEvaluation, options, paper)


def _compare(
    subject: str,
    models: Sequence[Compared],
    evaluation: type[TokenizerEvaluation | GeneratorEvaluation],
    options: ComparisonOptions,
    paper: Sequence[PaperRow],
) -> list[Path]:
    """Measure what is missing in the study's folder, and write the numbers beside the paper's.

    Args:
        subject: `tokenizers` or `generators`.

    Raises:
        UserError: results that were not measured under one protocol, and networks that would share columns.
    """
    require_matplotlib()
    labels = labelled(options.features)
    names = {field.name for field in fields(evaluation)} & {field.name for field in fields(options)} - {"features"}
    shared: dict[str, Any] = {name: getattr(options, name) for name in names}
    shared["size"] = options.size or models[0].tokenizer.image_size
    settings = evaluation(checkpoint=models[0].checkpoint, **shared)
    with study_folder(options.out):
        scores = _measure(subject, models, settings, options, labels)
        marked = [label for label, n in labels.items() if may_have_taught(n, [model.tokenizer for model in models])]
        shown = known_columns(labels, scores.values(), [*marked, PERCEPTUAL])
        table = _table(subject, models, scores, shown, paper if options.paper else [])
        return [*table.write(options.out), *_figure(subject, models, scores, shown, options.out)]


def _measure(
    subject: str,
    models: Sequence[Compared],
    settings: TokenizerEvaluation | GeneratorEvaluation,
    options: ComparisonOptions,
    labels: Mapping[str, str],
) -> Scores:
    """Scores of all models, those under `measured` where they are there."""
    input_fingerprints.cache_clear()  # the files may have changed since an earlier study of this process
    protocol = OneProtocol(() if subject == "tokenizers" else ("samples",))
    scores: Scores = {model.name: {} for model in models}
    for model in models:
        stem = file_stem(model.name)
        for label, network in labels.items():
            file = options.out / "measured" / f"{stem}--{label}.json"
            own = replace(settings, checkpoint=model.checkpoint, features=network)
            measurement = Measurement(own, options.device, model.fingerprint)
            measurement = measurement.drawn_into(options.out / "samples", f"{stem}-{model.fingerprint[:8]}")
            if measurement.is_done(file):
                say(f"{model.name} is measured already ({label})")
            else:
                say(f"measuring {model.name} ({label})")
                measurement.measure(file)
            scores[model.name] |= scores_of(protocol.read(file, label), label)
    return scores


def _table(
    subject: str, models: Sequence[Compared], scores: Scores, shown: Sequence[Column], paper: Sequence[PaperRow]
) -> Table:
    genuine = {column.key.partition("/")[2] for column in shown if column.key.startswith("fid/")}
    ours = [_key(column, genuine) for column in shown]
    more = {key: text for key, text in _PAPER_COLUMNS[subject].items() if paper and key not in ours}
    keys = sorted({key for each in scores.values() for key in each})
    inception = next(iter(genuine), "inception")
    theirs = {key: key if key == "psnr" else f"{key}/{inception}" for _, _, numbers in paper for key in numbers}
    keys += [key for key in dict.fromkeys(theirs.values()) if key not in keys]
    rows: list[list[str]] = []
    data: list[list[object]] = []
    for each in _in_order(models, paper):
        if isinstance(each, Compared):
            own: Mapping[str, Any] = scores[each.name]
            measured = [c.text(own.get(c.key, math.nan)) for c in shown]
            rows.append([each.name, *each.facts, *measured, *("–" for _ in more)])
            data.append([each.name, *each.facts, *(own.get(key, "") for key in keys)])
        else:
            name, facts, numbers = each
            rows.append([f"paper: {name}", *facts, *(numbers.get(key, "–") for key in (*ours, *more))])
            own = {theirs[key]: value for key, value in numbers.items() if value != "–"}
            data.append([f"paper: {name}", *facts, *(own.get(key, "") for key in keys)])
    notes = "All but the paper's rows were measured under one protocol, which measured/*.json have in full."
    if any(MARK in column.label for column in shown):
        notes += (
            f" {MARK} By a network that taught or judged one of these tokenizers, or may have been its perceptual "
            "loss: it favours them."
        )
    if paper:
        made = "ImageNet's 50,000 validation images" if subject == "tokenizers" else "50,000 samples of ImageNet"
        notes += f" The paper's numbers are of {made} at 256 pixels: they compare with ours only where ours are, too."
        if any(model.paper for model in models):
            notes += " Right below a model stands what the paper has of its architecture."
        if subject == "tokenizers":
            notes += " \\* trained on OpenImages, ‡ on unknown data."
    head = ["model", *_FACTS[subject]]
    return Table(
        f"{subject.capitalize()} under one protocol",
        [*head, *(c.heading for c in shown), *more.values()],
        rows,
        [*head, *keys],
        data,
        notes,
    )


def _in_order(models: Sequence[Compared], paper: Sequence[PaperRow]) -> list[Compared | PaperRow]:
    """Each model with the paper's rows of its architecture right below, then the paper's other rows."""
    found: list[Compared | PaperRow] = []
    left = dict(enumerate(paper))
    for model in models:
        found.append(model)
        found += [left.pop(i) for i in model.paper if i in left]
    return [*found, *left.values()]


def _key(column: Column, genuine: Collection[str]) -> str:
    """A column's metric as the paper has it: what was measured with another network than FID's own is not its."""
    name, _, network = column.key.partition("/")
    return name if not network or network in genuine else ""


def _figure(
    subject: str, models: Sequence[Compared], scores: Scores, shown: Sequence[Column], folder: Path
) -> list[Path]:
    """Of tokenizers Fig. 1, quality over the number of codes; of generators a dot each."""
    codes = {m.name: sum(factor.codebook_size for factor in m.tokenizer.factors) for m in models}
    drawn = [m for m in models if codes[m.name] or subject == "generators"]  # a continuous one has no place there
    panels = [
        Panel(c.heading, [Series(m.name, [codes[m.name]], [[scores[m.name][c.key]]]) for m in drawn])
        for c in shown
        if c.key.startswith(DRAWN)
    ]
    if not drawn:
        return []
    if subject == "tokenizers":
        return write_curves(folder, panels, "codes in all codebooks")
    return write_dots(folder, panels)
