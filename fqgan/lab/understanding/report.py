"""The study of understanding as a table in the form of Table 6, and as a page of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fqgan.base.files import write_text
from fqgan.base.spread import spread_evenly
from fqgan.evaluation.protocol import read_result
from fqgan.lab.report.render import Captioned, captions_page
from fqgan.lab.studies.results import Column, Numbers, cell, orderings_text
from fqgan.lab.studies.tables import Table
from fqgan.lab.understanding.readings import Reading, orderings_of
from fqgan.lab.understanding.trials import Trial, open_test_set

SHOWN = 24
"""Pictures on the page."""
TITLE = "A language model reads features and codes (Table 6)"
COLUMNS = (
    Column("cider", "CIDEr-D", 2, 1),
    Column("bleu4", "BLEU-4", 2, 1),
    Column("rouge", "ROUGE-L", 2, 1),
    Column("loss", "loss (nats a token)", 3, -1),
)
_PERCENT = ("cider", "bleu4", "rouge")  # times 100, as papers give them


@dataclass(frozen=True)
class UnderstandingResult:
    """What the study has written, and its numbers."""

    files: tuple[Path, ...]
    """`table.md`, `table.csv`, `table.tex` and `captions.html`."""
    numbers: Numbers
    """(row, seed) -> `cider`, `bleu4` and `rouge`, all times 100, and `loss` in nats a token."""


def write_report(readings: Sequence[Reading], trials: Sequence[Trial], language: str) -> UnderstandingResult:
    """Table and page of measured trials, in their study's folder; `language` is the language model's name."""
    results = {(trial.reading.name, trial.seed): read_result(trial.result) for trial in trials}
    numbers: Numbers = {
        key: {name: value * (100 if name in _PERCENT else 1) for name, value in result["metrics"].items()}
        for key, result in results.items()
    }
    out = trials[0].settings.out
    head = ["feature", "sub-codebook", *(column.heading for column in COLUMNS), "paper: CIDEr ↑"]
    cells, data = [], []
    for each in readings:
        scores = {seed: numbers[name, seed] for name, seed in sorted(numbers) if name == each.name}
        shown = [cell(column, [own[column.key] for own in scores.values()]) for column in COLUMNS]
        cells.append([each.feature, each.factors, *shown, "–" if each.paper is None else f"{each.paper:.2f}"])
        for seed, own in scores.items():
            values = [own[column.key] for column in COLUMNS]
            paper = "" if each.paper is None else each.paper
            data.append([each.name, each.feature, each.factors, seed, *values, paper])
    keys = [column.key for column in COLUMNS]
    deciding = [column for column in COLUMNS if column.key in ("cider", "loss")]
    orderings = orderings_text(orderings_of(readings), numbers, deciding)
    protocol = results[readings[0].name, trials[0].seed]["protocol"]
    notes = "\n\n".join([*_notes(trials, language, protocol), *orderings])
    table = Table(TITLE, head, cells, ["row", "feature", "sub_codebook", "seed", *keys, "paper_cider"], data, notes)
    files = table.write(out)
    page = out / "captions.html"
    write_text(page, _page(readings, trials, results))
    return UnderstandingResult((*files, page), numbers)


def _notes(trials: Sequence[Trial], language: str, protocol: Mapping[str, Any]) -> list[str]:
    settings = trials[0].settings
    train, prompt = settings.train, settings.prompt.replace("\n", "\\n")
    seeds = f"mean ± standard deviation over {settings.seeds} seeds" if settings.seeds > 1 else "one seed"
    images = {side: bank["content"]["images"] for side, bank in protocol["features"].items()}
    length = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    search = f"{settings.beams} beams" if settings.beams > 1 else "greedy"
    words = "Stanford's PTBTokenizer" if protocol["words"] == "java" else "fqgan's own tokenizer of words"
    return [
        f"CIDEr-D, BLEU-4 and ROUGE-L times 100; {seeds}; the seed sets the projector's first weights and the order of "
        "the captions. The loss is that of each picture's first caption.",
        f"Tokenizer {settings.tokenizer}, language model {language} (frozen), prompt `{prompt}`, "
        f"{settings.projector} projector, {length} of {train.batch}; {images['train']:,} training pictures, "
        f"{images['test']:,} of the test; {search}, at most {settings.tokens} tokens; words by {words}. Document "
        "frequencies come from these references, so that CIDEr-D compares within this table only.",
    ]


def _page(readings: Sequence[Reading], trials: Sequence[Trial], results: Mapping[Any, Mapping[str, Any]]) -> str:
    seed = min(trial.seed for trial in trials)
    tests = open_test_set(trials[0].settings)
    pictures = []
    for index in spread_evenly(len(tests), SHOWN):
        captions = {}
        for each in readings:
            text, value = results[each.name, seed]["captions"][index]
            captions[each.label] = (text, 100 * value)
        picture = tests.source.read(index)[0]
        row, of, file = tests.source.describe(index).rpartition(" of ")  # a row of a file, or a file
        name = f"{row}{of}{Path(file).name}"
        pictures.append(Captioned(picture, name, tests.captions[index], captions))
    intro = (
        f"{len(pictures)} test pictures, evenly spaced and not picked by hand, with people's captions and those of a "
        f"frozen language model that reads what the row names. Seed {seed}. CIDEr-D times 100 of the caption."
    )
    return captions_page("Captions from features and codes", intro, pictures)
