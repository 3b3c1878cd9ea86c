"""`fqgan extract CKPT --data ... --out STORE`."""

from __future__ import annotations

from dataclasses import replace

from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse
from fqgan.config.verbs import ExtractionSettings
from fqgan.models import hub


def main(argv: list[str]) -> None:
    """Entry point."""
    settings = parse(ExtractionSettings, argv, "fqgan extract", "Encode a set of images into a token store.")
    settings.check()
    settings = replace(settings, checkpoint=hub.local(settings.checkpoint))
    from fqgan.engine.session import running
    from fqgan.tokenizer.extraction import extract

    with running(settings.device) as world:
        done = extract(settings, world)
        if world.is_main:
            say_lines(done.summary)
            say(done.out)
