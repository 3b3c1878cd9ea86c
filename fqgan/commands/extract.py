"""`fqgan extract CKPT --data ... --out STORE`."""

from __future__ import annotations

from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse_for_model
from fqgan.config.verbs import ExtractionSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    settings = parse_for_model(ExtractionSettings, argv, "fqgan extract", "Encode a set of images into a token store.")
    from fqgan.engine.session import running
    from fqgan.tokenizer.extraction import extract

    with running(settings.device) as world:
        done = extract(settings, world)
        if world.is_main:
            say_lines(done.summary)
            say(done.out)
