"""`fqgan study understanding TOKENIZER --lm PATH_OR_ID --data CAPTIONS --out DIR`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse
from fqgan.commands.runs import value_of
from fqgan.config import TINY, TINY_PROJECTOR, ProjectorRunConfig, UnderstandingSettings
from fqgan.models import hub


@dataclass(frozen=True)
class Arguments(UnderstandingSettings):
    """Options of the command."""

    tokenizer: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENIZER")] = ""
    """A run, a checkpoint, an exported folder, a released file, or hf:org/name."""


def main(argv: list[str]) -> None:
    """Entry point."""
    base = TINY_PROJECTOR if value_of(argv, "--lm") == TINY else ProjectorRunConfig()
    about = "Table 6: a frozen language model reads a tokenizer's features and codes, and writes captions."
    default = Arguments(optimizer=base.optimizer, train=base.train)
    arguments = parse(Arguments, argv, "fqgan study understanding", about, default)
    settings = replace(arguments, prompt=arguments.prompt.replace("\\n", "\n"))
    settings.check()
    settings = replace(settings, tokenizer=str(hub.local(settings.tokenizer)))
    from fqgan.lab.understanding.study import study_understanding  # torch: only when there is something to do

    result = study_understanding(settings)
    say_lines(result.files[0].read_text())
    for file in result.files:
        say(file)
