"""`fqgan serve MODEL...`."""

from __future__ import annotations

from fqgan.commands.arguments import parse
from fqgan.config.serving import ServingSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    about = (
        "Serve tokenizers and generators over HTTP: a page to try them on, an interface that OpenAI's client speaks, "
        "and pictures that grow row by row. Ends after Ctrl-C or SIGTERM, once running requests are done."
    )
    settings = parse(ServingSettings, argv, "fqgan serve", about)
    settings.check()
    chosen = settings.chosen  # told before torch is loaded, where nothing is there
    from fqgan.serve.server import serve

    assert chosen
    serve(settings)
