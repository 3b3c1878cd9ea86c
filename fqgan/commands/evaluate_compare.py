"""`fqgan evaluate compare A B`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fqgan.base.errors import UserError
from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse

PROG = "fqgan evaluate compare"


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
    arguments = parse(Arguments, argv, PROG, "Two results side by side, and whether their protocols are the same.")
    from fqgan.evaluation.protocol import differences, read_result

    first, second = read_result(arguments.first), read_result(arguments.second)
    changed = differences(first, second, arguments.allow)
    say_lines(_table(_numbers(first), _numbers(second)))
    if changed:
        told = "; ".join(f"{name}: {a!r} against {b!r}" for name, (a, b) in changed.items())
        raise UserError(f"not the same protocol, so these numbers do not compare: {told}")
    say("the same protocol" + (f" but for {', '.join(arguments.allow)}" if arguments.allow else ""))


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    from fqgan.base.schema import flatten, is_number

    both = {**result["metrics"], **{f"factors.{k}": v for k, v in result.get("factors", {}).items()}}
    return {name: value for name, value in flatten(both).items() if is_number(value)}


def _table(first: dict[str, float], second: dict[str, float]) -> str:
    names = list({**first, **second})
    width = max(map(len, names))
    lines = [f"{'':<{width}}  {'A':>12}  {'B':>12}  {'B - A':>12}"]
    for name in names:
        a, b = first.get(name, math.nan), second.get(name, math.nan)
        values = "  ".join(f"{'-' if math.isnan(each) else f'{each:.6g}':>12}" for each in (a, b, b - a))
        lines.append(f"{name:<{width}}  {values}")
    return "\n".join(lines)
