"""`fqgan data info SOURCE`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fqgan.base.files import make_folder, write_text
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.config.packing import SurveySettings

LISTED = 12
"""Unreadable pictures that are named."""


@dataclass(frozen=True, kw_only=True)
class Arguments(SurveySettings):
    """Options of the command."""

    json: Path = Path()
    """JSON file to write the numbers to; by default none."""


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(Arguments, argv, "fqgan data info", "Classes, sizes and formats of a set of images.")
    arguments.check()
    if arguments.json != Path():
        check_output(arguments.json, folder=False, option="--json", inputs=[arguments.source], mark='"scanned"')
    from rich import print as show

    from fqgan.data.survey import survey
    from fqgan.data.survey_table import table

    found = survey(arguments)
    show(table(found.numbers))
    for warning in found.warnings:
        say(f"warning: {warning}")
    problems = found.numbers["unreadable"]
    for problem in problems[:LISTED]:
        say(f"unreadable: {problem}")
    if len(problems) > LISTED:
        say(f"and {len(problems) - LISTED:,} more (--json names them all)")
    if arguments.json != Path():
        make_folder(arguments.json.parent)
        write_text(arguments.json, json.dumps(found.numbers, indent=2) + "\n")
        say(arguments.json)
