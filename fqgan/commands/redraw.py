"""`fqgan redraw GENERATOR STORE --keep 0.7 --out STORE`."""

from __future__ import annotations

from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse_for_model
from fqgan.config.verbs import RedrawingSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "Draw a share of a token store's codes again with a generator, for the post-training of a decoder."
    settings = parse_for_model(RedrawingSettings, argv, "fqgan redraw", about)
    from fqgan.engine.session import running
    from fqgan.generator.redrawn import redraw_store

    with running(settings.device) as world:
        done = redraw_store(settings, world)
        if world.is_main:
            say_lines(done.summary)
            say(done.out)
