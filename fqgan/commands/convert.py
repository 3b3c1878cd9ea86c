"""`fqgan convert SRC DST`."""

from __future__ import annotations

from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.config.verbs import ConversionSettings
from fqgan.generator.convert import convert


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "Convert released files to fqgan folders and back, and runs to folders."
    say(convert(parse(ConversionSettings, argv, "fqgan convert", about)).out)
