"""The command line of one command: a dataclass in, an instance out, one line for a mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from typing import Any, TypeVar

import tyro

from fqgan.config import did_you_mean, flatten
from fqgan.errors import UserError

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], prog: str, description: str, default: T | None = None) -> T:
    """Parse `argv` into `cls`, from the values of `default` where one is given."""
    _check_options(argv, _option_names(cls, default), prog)
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            if default is None:
                return tyro.cli(cls, args=argv, prog=prog, description=description)
            return tyro.cli(cls, args=argv, prog=prog, description=description, default=default)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_first_sentence(captured.getvalue())}; see {prog} --help") from None


def _option_names(cls: type, default: Any) -> set[str]:
    if default is not None:
        names = flatten(default).keys()
    else:
        names = [field.name for field in dataclasses.fields(cls)]
    return {name.replace("_", "-") for name in names}


def _check_options(argv: list[str], known: set[str], prog: str) -> None:
    """Unknown options are told with the nearest known one, in one line."""
    for argument in argv:
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0].replace("_", "-")
        positive = re.sub(r"(^|\.)no-([^.]+)$", r"\1\2", name)
        if name != "help" and not {name, positive} & known:
            nearest = did_you_mean(f"--{name}", [f"--{option}" for option in known])
            raise UserError(f"unknown option --{name}{nearest}; see {prog} --help")


def _first_sentence(box: str) -> str:
    """The message inside the parser's box, on one line."""
    lines = [line.strip("│ ").strip() for line in box.splitlines()]
    message: list[str] = []
    for line in lines:
        if line.startswith(("╭", "╰", "─")):
            if message:
                break
            continue
        message.append(line)
    return " ".join(message).rstrip(".")
