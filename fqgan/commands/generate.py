"""`fqgan generate CKPT --classes 0,5,9 --num 64 --out DIR`."""

from __future__ import annotations

from fqgan.base.printing import say
from fqgan.commands.arguments import parse_for_model
from fqgan.config.verbs import GenerationSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "Generate pictures by class: one PNG for each picture, a grid, and ADM's .npz on request."
    settings = parse_for_model(GenerationSettings, argv, "fqgan generate", about)
    from fqgan.engine.session import running
    from fqgan.generator.generate import generate

    with running(settings.device) as world:
        done = generate(settings, world)
        if world.is_main:
            say(done.out)
