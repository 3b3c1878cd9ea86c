"""`fqgan evaluate compare A B`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fqgan.base.errors import UserError
from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    first: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """First result: an eval.json, or the folder that holds it."""
    second: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Second result: an eval.json, or the folder that holds it."""
    allow: tuple[str, ...] = ()
    """Entries of the protocol in which the results may differ, such as versions, device, samples.seed or
    samples.sampling."""


def main(argv: list[str]) -> None:
    """Entry point. Numbers of two protocols are shown, and then refused."""
    arguments = parse(
        Arguments, argv, "fqgan evaluate compare", "Two results side by side, and whether their protocols are the same."
    )
    from fqgan.evaluation.compare import compare

    found = compare(arguments.first, arguments.second, arguments.allow)
    say_lines(found.table())
    if found.differences:
        entries = "; ".join(f"{name}: {a!r} against {b!r}" for name, (a, b) in found.differences.items())
        raise UserError(f"not the same protocol, so these numbers do not compare: {entries}")
    say("the same protocol" + (f" but for {', '.join(arguments.allow)}" if arguments.allow else ""))
