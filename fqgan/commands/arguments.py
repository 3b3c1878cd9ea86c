"""The command line of one command: a dataclass in, an instance out, one line for a mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import tyro

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean, flatten
from fqgan.models import hub

T = TypeVar("T")


def parse(cls: type[T], argv: list[str], prog: str, description: str, default: T | None = None) -> T:
    """Parse `argv` into `cls`, from the values of `default` where one is given."""
    known = _option_names(cls, default)
    argv = _respelled(argv, known)
    _check_options(argv, known, prog)
    options: dict[str, Any] = {"args": argv, "prog": prog, "description": description}
    if default is not None:
        options["default"] = default
    width = contextlib.nullcontext() if {"-h", "--help"} & set(argv) else _wide_terminal()
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), width:
            return tyro.cli(cls, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_first_sentence(captured.getvalue())}; see {prog} --help") from None


def parse_for_model(cls: type[T], argv: list[str], prog: str, description: str) -> T:
    """Parse `argv` into checked settings whose `checkpoint` is on this machine: what is on the hub is fetched."""
    settings: Any = parse(cls, argv, prog, description)
    settings.check()
    return dataclasses.replace(settings, checkpoint=hub.local(settings.checkpoint))


def _option_names(cls: type, default: Any) -> set[str]:
    names = [field.name for field in dataclasses.fields(cls)] if default is None else list(flatten(default))
    return {name.replace("_", "-") for name in names}


def _check_options(argv: list[str], known: set[str], prog: str) -> None:
    """Unknown options are refused with the nearest known one, in one line."""
    for argument in argv:
        if re.match(r"-[a-zA-Z]", argument) and argument not in ("-h", "-inf", "-nan"):
            raise UserError(f"unknown option {argument}; see {prog} --help")
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0].replace("_", "-")
        positive = re.sub(r"(^|\.)no-([^.]+)$", r"\1\2", name)
        if name != "help" and not {name, positive} & known:
            nearest = did_you_mean(f"--{name}", [f"--{option}" for option in known])
            raise UserError(f"unknown option --{name}{nearest}; see {prog} --help")


def _respelled(argv: list[str], known: set[str]) -> list[str]:
    """Options as they are called here: a data set's have `--data.` before them in training only, and version 0.1 had
    `--upscale` for `--small enlarge`."""
    words: list[str] = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        for old, new in (("upscale", "enlarge"), ("no-upscale", "refuse")):
            small = next((option for option in ("data.small", "small", "measure.small") if option in known), "")
            if small and re.fullmatch(rf"--(data\.|measure\.)?{old}", re.sub(r"\.no-", ".no-", name)):
                name, equals, value = f"--{small}", "=", new
        if name.startswith("--data.") and name[2:] not in known and name[7:] in known:
            name = f"--{name[7:]}"
        words.append(f"{name}{equals}{value}" if argument.startswith("--") else argument)
    return words


def _first_sentence(box: str) -> str:
    """The message in the parser's box, which stands between its first two rules, on one line.

    The box has colours on a terminal, and rules of ASCII where the output's encoding is not UTF-8.
    """
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    rules = [i for i, line in enumerate(lines) if re.match(r"[╭╰─]|-{5,}$", line)]
    first, last = (*rules, len(lines), len(lines))[:2] if rules else (-1, len(lines))
    return " ".join(filter(None, lines[first + 1 : last])).rstrip(".")


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """The parser breaks its messages to the terminal's width, in the middle of a long path too: make it wide."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
