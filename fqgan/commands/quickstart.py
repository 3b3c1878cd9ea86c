"""`fqgan quickstart`: a small tokenizer and a generator on the packaged photographs, measured and shown on one page."""

from __future__ import annotations

import shlex

from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse
from fqgan.config.quickstart import GENERATOR, TOKENIZER, QuickstartSettings

PROG = "fqgan quickstart"


def main(argv: list[str]) -> None:
    """Entry point."""
    settings = parse(
        QuickstartSettings,
        argv,
        PROG,
        f"Train a tokenizer (preset {TOKENIZER}) on ten packaged photographs and a generator ({GENERATOR}) on its "
        "codes, measure both, and show everything on one page. Works offline.",
    )
    settings.check()
    from fqgan.lab.quickstart import quickstart  # torch: only when there is something to do

    result = quickstart(settings, shlex.join([*PROG.split(), *argv]))
    say_lines(result.summary)
    say(result.evaluation_file)
    say(result.page)
