"""The study of understanding as a table in the form of Table 6, and as a page of captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fqgan.base.files import write_text
from fqgan.data.order import evenly_spaced
from fqgan.evaluation.protocol import read_result
from fqgan.lab.report.render import Captioned, captions_page
from fqgan.lab.studies.results import Column, Numbers, cell, judged, orderings_text
from fqgan.lab.studies.tables import comma_separated, write_table
from fqgan.lab.understanding.study import Job, Row, orderings_of

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


def report(rows: Sequence[Row], jobs: Sequence[Job]) -> list[Path]:
    """Write `table.md`, `table.csv`, `table.tex` and `captions.html` of measured jobs; returns them."""
    results = {(job.row.name, job.seed): read_result(job.measured) for job in jobs}
    numbers: Numbers = {
        key: {name: value * (100 if name in _PERCENT else 1) for name, value in result["metrics"].items()}
        for key, result in results.items()
    }
    out = jobs[0].setting.out
    head = ["feature", "sub-codebook", *(column.heading for column in COLUMNS), "paper: CIDEr ↑"]
    cells, data = [], []
    for row in rows:
        scores = [numbers[key] for key in sorted(numbers) if key[0] == row.name]
        paper = "–" if row.paper is None else f"{row.paper:.2f}"
        shown = [cell(column, [each[column.key] for each in scores]) for column in COLUMNS]
        cells.append([row.feature, row.factors, *shown, paper])
        for name, seed in sorted(numbers):
            if name == row.name:
                values = [numbers[name, seed][column.key] for column in COLUMNS]
                data.append([row.name, row.feature, row.factors, seed, *values, "" if row.paper is None else row.paper])
    keys = [column.key for column in COLUMNS]
    text = comma_separated(["row", "feature", "sub_codebook", "seed", *keys, "paper_cider"], data)
    verdicts = judged(orderings_of(rows), numbers, [column for column in COLUMNS if column.key in ("cider", "loss")])
    protocol = results[rows[0].name, jobs[0].seed]["protocol"]
    notes = "\n\n".join([*_notes(jobs, protocol), *orderings_text(verdicts)])
    files = write_table(out, TITLE, head, cells, notes, text)
    page = out / "captions.html"
    write_text(page, _page(rows, jobs, results))
    return [*files, page]


def _notes(jobs: Sequence[Job], protocol: dict[str, Any]) -> list[str]:
    job = jobs[0]
    setting, train = job.setting, job.config.train
    seeds = len({each.seed for each in jobs})
    images = {side: protocol["features"][side]["content"]["images"] for side in ("train", "test")}
    length = f"{train.steps:,} steps" if train.steps else f"{train.epochs:g} epochs"
    search = f"{setting.beams} beams" if setting.beams > 1 else "greedy"
    words = "Stanford's PTBTokenizer" if protocol["words"] == "java" else "fqgan's own tokenizer of words"
    return [
        "CIDEr-D, BLEU-4 and ROUGE-L times 100; " + _spread(seeds) + "the seed sets the projector's first weights and "
        "the order of the captions. The loss is that of each picture's first caption.",
        f"Tokenizer {setting.tokenizer}, language model {_language(job)} (frozen), prompt `{_shown(job)}`, "
        f"{job.config.model.projector} projector, {length} of {train.batch}; {images['train']:,} training pictures, "
        f"{images['test']:,} of the test; {search}, at most {setting.tokens} tokens; words by {words}. Document "
        "frequencies come from these references, so that CIDEr-D compares within this table only.",
    ]


def _spread(seeds: int) -> str:
    return f"mean ± standard deviation over {seeds} seeds; " if seeds > 1 else "one seed; "


def _language(job: Job) -> str:
    folder = job.setting.language
    return "tiny" if folder == job.setting.out / "lm" / "model" else str(folder)


def _shown(job: Job) -> str:
    return job.config.model.prompt.replace("\n", "\\n")


def _page(rows: Sequence[Row], jobs: Sequence[Job], results: dict[Any, dict[str, Any]]) -> str:
    seed = min(job.seed for job in jobs)
    tests = jobs[0].setting.test_set()
    pictures = []
    for index in evenly_spaced(len(tests), SHOWN):
        captions = {}
        for each in rows:
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
