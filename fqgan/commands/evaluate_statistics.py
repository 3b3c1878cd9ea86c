"""`fqgan evaluate statistics DATA --out FILE.safetensors`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.config.devices import Device
from fqgan.config.evaluation import SetStatistics


@dataclass(frozen=True, kw_only=True)
class Arguments(SetStatistics):
    """Options of the command."""

    out: Path = Path()
    """File to write; its name must end in .safetensors."""
    device: Device = "auto"


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(
        Arguments,
        argv,
        "fqgan evaluate statistics",
        "Save a set's features and statistics, to compare samples with later.",
    )
    if arguments.out.suffix != ".safetensors":
        raise UserError("--out must name a file that ends in .safetensors")
    arguments.check()
    check_output(arguments.out, folder=False, inputs=[arguments.data], mark='"fqgan"')
    from fqgan.engine.session import running
    from fqgan.evaluation.sets import compute_statistics

    with running(arguments.device) as world:
        summary = compute_statistics(arguments, arguments.out, world)
        if world.is_main:
            say(summary)
            say(arguments.out)
