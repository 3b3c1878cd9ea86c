"""Models that are there, evaluated under one protocol: Tables 1 and 2 and Fig. 1 of the paper."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.config import TokenizerConfig
from fqgan.config.evaluation import GeneratorEvaluation, TokenizerEvaluation
from fqgan.data.fingerprint import digest
from fqgan.engine.sizes import num_parameters
from fqgan.generator.model import load_generator
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.studies.figures import Panel, Series, write_curves, write_dots
from fqgan.lab.studies.jobs import labelled
from fqgan.lab.studies.measurements import Measurement, OneProtocol, input_fingerprints, scores_of, study_folder
from fqgan.lab.studies.results import DRAWN, MARK, PERCEPTUAL, Column, known_columns, may_have_taught
from fqgan.lab.studies.settings import ComparisonOptions, GeneratorsOptions, TokenizersOptions
from fqgan.lab.studies.tables import Table, file_stem
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.model import load_tokenizer


@dataclass(frozen=True)
class Compared:
    """A model in the table."""

    name: str
    checkpoint: Path
    facts: tuple[str, ...]
    """What the table says of it beside the numbers."""
    fingerprint: str
    """Of its weights and those of the tokenizer that decodes for it: other weights are measured anew."""
    tokenizer: TokenizerConfig
    """Its own, or that of its codes."""


Scores = dict[str, dict[str, float]]
"""Model -> metric -> value."""
PaperRow = tuple[str, tuple[str, ...], Mapping[str, str]]
"""Model, its facts, and numbers by the key of a column without its network."""

# Table 1: model, downsampling, codes, dimension of a code, rFID, PSNR
TABLE_1 = [
    *(("VQGAN", "16", "16384", "256", "4.98", "–"), ("SD-VQGAN", "16", "16384", "4", "5.15", "–")),
    *(("RQ-VAE", "16", "16384", "256", "3.20", "–"), ("LlamaGen", "16", "16384", "8", "2.19", "20.79")),
    *(("Titok-B", "–", "4096", "12", "1.70", "–"), ("VQGAN-LC", "16", "100000", "8", "2.62", "23.80")),
    *(("VQ-KD", "16", "8192", "32", "3.41", "–"), ("VILA-U", "16", "16384", "256", "1.80", "–")),
    ("Open-MAGVIT2", "16", "262144", "1", "1.17", "21.90"),
    *(
        ("FQGAN-Dual", "16", "2 x 16384", "8", "0.94", "22.02"),
        ("FQGAN-Triple", "16", "3 x 16384", "8", "0.76", "22.73"),
    ),
    *(("SD-VAE ‡", "8", "–", "4", "0.74", "25.68"), ("SDXL-VAE ‡", "8", "–", "4", "0.68", "26.04")),
    *(("ViT-VQGAN", "8", "8192", "32", "1.28", "–"), ("VQGAN *", "8", "16384", "4", "1.19", "23.38")),
    *(("SD-VQGAN *", "8", "16384", "4", "1.14", "–"), ("OmniTokenizer", "8", "8192", "8", "1.11", "–")),
    *(("LlamaGen", "8", "16384", "8", "0.59", "25.45"), ("Open-MAGVIT2", "8", "262144", "1", "0.34", "26.19")),
    *(("FQGAN-Dual", "8", "2 x 16384", "8", "0.32", "26.27"), ("FQGAN-Triple", "8", "3 x 16384", "8", "0.24", "27.58")),
]
# Table 2: model, parameters, FID, IS, precision, recall
TABLE_2 = [
    *(("ADM", "554M", "10.94", "101.0", "0.69", "0.63"), ("CDM", "–", "4.88", "158.7", "–", "–")),
    *(("LDM-4", "400M", "3.60", "247.7", "–", "–"), ("DiT-XL/2", "675M", "2.27", "278.2", "0.83", "0.57")),
    ("Open-MAGVIT2-B", "343M", "3.08", "258.26", "0.85", "0.51"),
    ("Open-MAGVIT2-L", "804M", "2.51", "271.70", "0.84", "0.54"),
    *(("VQGAN", "227M", "18.65", "80.4", "0.78", "0.26"), ("VQGAN", "1.4B", "15.78", "74.3", "–", "–")),
    *(("VQGAN-re", "1.4B", "5.20", "280.3", "–", "–"), ("ViT-VQGAN", "1.7B", "4.17", "175.1", "–", "–")),
    *(("ViT-VQGAN-re", "1.7B", "3.04", "227.4", "–", "–"), ("RQTran.", "3.8B", "7.55", "134.0", "–", "–")),
    ("RQTran.-re", "3.8B", "3.80", "323.7", "–", "–"),
    *(
        ("LlamaGen-L", "343M", "3.80", "248.28", "0.83", "0.51"),
        ("LlamaGen-XL", "775M", "3.39", "227.08", "0.81", "0.54"),
    ),
    *(("FAR-Base", "415M", "3.38", "248.26", "0.81", "0.54"), ("FAR-Large", "898M", "3.08", "272.52", "0.82", "0.54")),
]
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
        sizes = [factor.codebook_size for factor in config.factors]
        codes = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 < len(sizes) else " + ".join(map(str, sizes))
        dims = sorted({factor.code_dim for factor in config.factors})
        facts = (str(config.downsampling), codes, ", ".join(map(str, dims)), f"{num_parameters(tokenizer) / 1e6:.1f}M")
        models.append(Compared(name, path, facts, tokenizer.fingerprint(), config))
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
        models.append(Compared(name, path, facts, weights, generator.tokenizer.config))
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
    rows = [
        [model.name, *model.facts, *(c.text(scores[model.name][c.key]) for c in shown), *("–" for _ in more)]
        for model in models
    ]
    rows += [
        [f"paper: {name}", *facts, *(numbers.get(key, "–") for key in (*ours, *more))] for name, facts, numbers in paper
    ]
    keys = sorted({key for each in scores.values() for key in each})
    data: list[list[object]] = [
        [model.name, *model.facts, *(scores[model.name].get(key, "") for key in keys)] for model in models
    ]
    inception = next(iter(genuine), "inception")
    theirs = {key: key if key == "psnr" else f"{key}/{inception}" for _, _, numbers in paper for key in numbers}
    keys += [key for key in dict.fromkeys(theirs.values()) if key not in keys]
    for name, facts, numbers in paper:
        own = {theirs[key]: value for key, value in numbers.items() if value != "–"}
        data.append([f"paper: {name}", *facts, *(own.get(key, "") for key in keys)])
    notes = "All but the paper's rows were measured under one protocol, which measured/*.json have in full."
    if any(MARK in column.label for column in shown):
        notes += (
            f" {MARK} By a network that taught one of these tokenizers, or may have been its perceptual loss: it "
            "favours them."
        )
    if paper:
        made = "ImageNet's 50,000 validation images" if subject == "tokenizers" else "50,000 samples of ImageNet"
        notes += f" The paper's numbers are of {made} at 256 pixels: they compare with ours only where ours are, too."
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


def _key(column: Column, genuine: Collection[str]) -> str:
    """A column's metric as the paper has it: what was measured with another network than FID's own is not its."""
    name, _, network = column.key.partition("/")
    return name if not network or network in genuine else ""


def _figure(
    subject: str, models: Sequence[Compared], scores: Scores, shown: Sequence[Column], folder: Path
) -> list[Path]:
    """Of tokenizers Fig. 1, quality over the number of codes; of generators a dot each."""
    codes = {m.name: sum(factor.codebook_size for factor in m.tokenizer.factors) for m in models}
    panels = [
        Panel(c.heading, [Series(m.name, [codes[m.name]], [[scores[m.name][c.key]]]) for m in models])
        for c in shown
        if c.key.startswith(DRAWN)
    ]
    if subject == "tokenizers":
        return write_curves(folder, panels, "codes in all codebooks")
    return write_dots(folder, panels)
