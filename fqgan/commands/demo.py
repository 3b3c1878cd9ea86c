"""`fqgan demo`."""

from __future__ import annotations

from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.config.quickstart import DemoSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "Reconstruct and generate pictures with the two models that fqgan quickstart trained. Takes seconds."
    settings = parse(DemoSettings, argv, "fqgan demo", about)
    settings.check()
    from fqgan.engine.session import running
    from fqgan.lab.demo import demo

    with running(settings.device) as world:
        made = demo(settings, world)
    say(f"{len(made.psnr)} held-out crops reconstructed (PSNR {made.mean_psnr:.1f} dB): {', '.join(made.rows)}")
    say(made.reconstructions)
    say(f"{made.generated} pictures drawn in {made.seconds:.1f} s, a class a row")
    say(made.samples)
