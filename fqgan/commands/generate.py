"""`fqgan generate CKPT --classes 0,5,9 --num 64 --out DIR`."""

from __future__ import annotations

from dataclasses import replace

from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.config.verbs import GenerationSettings
from fqgan.models import hub


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "Generate pictures by class: one PNG for each picture, a grid, and ADM's .npz on request."
    settings = parse(GenerationSettings, argv, "fqgan generate", about)
    settings.check()
    settings = replace(settings, checkpoint=hub.local(settings.checkpoint))
    from fqgan.engine.session import running
    from fqgan.generator.generate import generate

    with running(settings.device) as world:
        done = generate(settings, world)
        if world.is_main:
            say(done.out)
