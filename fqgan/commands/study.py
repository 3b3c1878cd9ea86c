"""`fqgan study SUBJECT ...`: the tables and figures of the paper."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from fqgan.base.printing import say, say_lines
from fqgan.commands import study_understanding
from fqgan.commands.arguments import parse
from fqgan.commands.runs import TrainingCommand
from fqgan.commands.subjects import choose
from fqgan.lab.studies.registry import STUDIES, Entry

_OF_LANGUAGE = {
    "understanding": (
        "TOKENIZER --lm PATH_OR_ID --data CAPTIONS --out DIR",
        "Table 6: a language model reads features and codes, and writes captions",
    )
}
SUBJECTS = {name: (entry.usage, entry.about) for name, entry in STUDIES.items()} | _OF_LANGUAGE


def main(argv: list[str]) -> None:
    """Entry point."""
    if (name := choose("fqgan study", "study", SUBJECTS, argv)) in _OF_LANGUAGE:
        study_understanding.main(argv[1:])
    elif name:
        entry = STUDIES[name]
        files = _trained(name, entry, argv[1:]) if entry.rows else _looked(name, entry, argv[1:])
        say_lines(files[0].read_text())
        for file in files:
            say(file)


def _trained(name: str, entry: Entry, argv: list[str]) -> list[Path]:
    """Rows that are trained, from a preset."""
    base, options = command_of(name, entry).parse_all(argv)
    options.check_study()
    assert entry.rows is not None
    study = entry.rows(base, argv[0], options)
    from fqgan.lab.studies.trained import train_study  # torch: only when there is something to train

    return train_study(study, base, options)


def command_of(name: str, entry: Entry) -> TrainingCommand[Any]:
    """How a study whose rows are trained is called."""
    settings = type(next(iter(entry.presets.values())))
    return TrainingCommand(f"fqgan study {name}", f"{entry.about},", entry.presets, settings, entry.options)


def _looked(name: str, entry: Entry, argv: list[str]) -> list[Path]:
    """Models that are there."""
    options = parse(entry.options, argv, f"fqgan study {name}", f"{entry.about}.")
    options.check()
    options = options.local()
    module, _, function = entry.run.partition(":")
    return getattr(import_module(f"fqgan.lab.{module}"), function)(options)
