"""`fqgan edit GENERATOR PICTURE --keep semantic --num 8`."""

from __future__ import annotations

from fqgan.base.printing import say
from fqgan.commands.arguments import parse_for_model
from fqgan.config.editing import EditingSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    about = (
        "Encode a picture, keep some of its codes (a factor, all but a region), and draw the others again; or take a "
        "factor from another picture."
    )
    settings = parse_for_model(EditingSettings, argv, "fqgan edit", about)
    from fqgan.engine.session import running
    from fqgan.generator.edit import edit

    with running(settings.device) as world:
        say(edit(settings, world).out)
