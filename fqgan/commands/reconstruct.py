"""`fqgan reconstruct CKPT IMAGE... --out DIR`."""

from __future__ import annotations

from fqgan.base.printing import say
from fqgan.commands.arguments import parse_for_model
from fqgan.config.verbs import ReconstructionSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    about = (
        "Encode pictures (their centre, or with --whole all of them) and decode them again. Writes the original, the "
        "reconstruction and each factor alone (Fig. 3) side by side, with the codes and the PSNR."
    )
    settings = parse_for_model(ReconstructionSettings, argv, "fqgan reconstruct", about)
    from fqgan.engine.session import running
    from fqgan.tokenizer.reconstruction import reconstruct

    with running(settings.device) as world:
        say(reconstruct(settings, world).out)
