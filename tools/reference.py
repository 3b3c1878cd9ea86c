"""The site's reference of commands and settings as Markdown, from the code that parses command lines."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import tyro

from fqgan.cli import COMMANDS
from fqgan.commands import arguments

KINDS = {bool: "switch", int: "integer", float: "number", str: "text", Path: "path"}
FACTOR = "N"
"""Stands for a factor's number in the name of an option."""


@dataclass(frozen=True)
class Call:
    """What a command hands to the parser."""

    prog: str
    usage: str
    about: str
    settings: type[Any]
    presets: tuple[str, ...] = ()
    """Names that stand before the options; the defaults are those of the first."""
    default: Any = None


@dataclass(frozen=True)
class Option:
    """A setting as one types it."""

    name: str
    kind: str
    default: str
    text: str
    group: Any = None
    """The values of its class, for a setting that holds settings."""


def calls() -> Iterator[tuple[str, str, list[Call]]]:
    """(command, what it is about, its calls) of every command, in the order of `fqgan --help`."""
    for name, about in COMMANDS.items():
        module = import_module(f"fqgan.commands.{name.replace('-', '_')}")
        subjects: Mapping[str, tuple[str, str]] = getattr(module, "SUBJECTS", {"": ("", "")})
        yield name, about, [each for subject, (usage, _) in subjects.items() for each in _calls(module, subject, usage)]


def _calls(module: Any, subject: str, usage: str) -> list[Call]:
    """What a command, or one of its subjects, parses; a command that plans any run parses several things."""
    argv = [subject] if subject else []
    seen, printed = _help(module, [*argv, "--help"])
    if seen:
        return [_call(seen, usage)]
    found: dict[type, Call] = {}
    presets = re.search(r"^presets: (.*)$", printed, re.MULTILINE)
    assert presets, printed
    for preset in presets[1].split(", "):
        (settings, options), _ = _help(module, [*argv, preset, "--help"])
        known = found.get(settings) or _call((settings, options), usage)
        found[settings] = dataclasses.replace(known, presets=(*known.presets, preset))
    return list(found.values())


def _help(module: Any, argv: list[str]) -> tuple[Any, str]:
    """What a command hands to the parser when it is asked for help, or else what it prints."""
    seen: list[Any] = []

    def parser(settings: type[Any], **options: Any) -> None:
        seen.append((settings, options))
        raise SystemExit(0)

    printed = io.StringIO()
    out, end = contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit)
    with patch.object(arguments.tyro, "cli", parser), out, end:
        module.main(argv)
    return (seen[0] if seen else None), printed.getvalue()


def _call(seen: tuple[type[Any], dict[str, Any]], usage: str) -> Call:
    settings, options = seen
    prog = " ".join(word for word in options["prog"].split()[: 3 if usage else 2])
    about = options["description"].rstrip(".") + "."
    return Call(
        prog,
        usage,
        re.sub(r" from preset [\w-]+, or resume", ", or resume", about),
        settings,
        (),
        options.get("default"),
    )


def options_of(settings: type[Any], default: Any = None) -> list[Option]:
    """The settings of a class, in the order of its fields."""
    hints = typing.get_type_hints(settings, include_extras=True)
    found = []
    for each in fields(settings):
        value = getattr(default, each.name) if default is not None else _default(each)
        hint, told = _plain(hints[each.name])
        name, group = f"--{each.name.replace('_', '-')}", value if is_dataclass(value) else None
        if isinstance(value, tuple) and value and is_dataclass(value[0]):
            name, group = f"{name}.{FACTOR}", value[0]
        meta = next((item.metavar for item in told if getattr(item, "metavar", None)), None)
        if tyro.conf.Positional in told:
            name = meta or each.name.upper()
        help_ = next((item.help for item in told if getattr(item, "help", None)), "")
        text = " ".join(filter(None, [texts(settings).get(each.name) or help_, _range(each.metadata)]))
        found.append(Option(name, _kind(hint), _shown(value), text, group))
    return found


@cache
def texts(settings: type[Any]) -> dict[str, str]:
    """Field -> the docstring below it, in a class or those that it stands on."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if not is_dataclass(kind):
            continue
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _plain(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what is said about it, and that."""
    return (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())


def _kind(hint: Any) -> str:
    """A type in words."""
    hint, _ = _plain(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin is tuple:
        return f"{_kind(inner[0])} ..."
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(each) for each in inner if each is not type(None))
    return KINDS.get(hint, getattr(hint, "__name__", str(hint)))


def _range(known: Mapping[str, Any]) -> str:
    """What is known of a setting beside its docstring."""
    low = "Above 0" if known.get("positive") else f"At least {known['least']}" if known.get("least") else ""
    high = known.get("below", math.inf)
    parts = [low, f"below {high}" if high < math.inf else f"at most {known['most']:,}" if known.get("most") else ""]
    words = ", ".join(filter(None, parts))
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def _shown(value: Any) -> str:
    """A default as one would type it."""
    if value is dataclasses.MISSING:
        return "*required*"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        value = " ".join(str(each) for each in value)
    return f"`{value}`" if str(value) not in ("", ".") else ""


def pages() -> dict[str, str]:
    """Path on the site -> Markdown of the two pages."""
    return {"reference/commands.md": _commands(), "reference/settings.md": _settings()}


def _commands() -> str:
    parts = [
        "# Commands\n\nEvery command and every option, as the code has them. `fqgan COMMAND --help` prints the same. "
        "Options with a dot belong to groups, which several commands share: [Settings](settings.md) lists them. A "
        "switch is turned on by `--name` and off by `--no-name`; three dots mean several values, separated by "
        "spaces.\n"
    ]
    for name, about, found in calls():
        parts.append(f"## fqgan {name}\n\n{about[0].upper()}{about[1:]}.\n")
        for call in found:
            usage = call.usage or ("PRESET [OPTIONS]" if call.presets else "")
            alike = sum(each.prog == call.prog for each in found) > 1
            title = f"{call.prog} {call.presets[0]}" if alike else call.prog
            if alike or call.usage:
                parts.append(f"### {title}\n\n{call.about}\n")
            parts.append(f"```text\n{call.prog} {usage}".rstrip() + "\n```\n")
            if call.presets:
                parts.append(f"Presets: {', '.join(f'`{each}`' for each in call.presets)}.\n")
            options = options_of(call.settings, call.default)
            parts.append(_table([each for each in options if each.group is None], defaults=not call.presets))
            if groups := [each for each in options if each.group is not None]:
                links = (f"[`{each.name}.*`](settings.md#{_anchor(type(each.group))})" for each in groups)
                parts.append(f"Groups: {', '.join(links)}.\n")
    return "\n".join(parts)


def groups() -> dict[type[Any], tuple[list[str], Any]]:
    """Class -> the names that its settings begin with on command lines, and values of it."""
    found: dict[type[Any], tuple[list[str], Any]] = {}

    def collect(settings: type[Any], default: Any, prefix: str) -> None:
        for option in options_of(settings, default):
            if option.group is not None:
                kind, name = type(option.group), f"{prefix}{option.name.removeprefix('--')}."
                names, _ = found.setdefault(kind, ([], _plainest(kind, option.group)))
                if name not in names:
                    names.append(name)
                collect(kind, option.group, name)

    for _, _, called in calls():
        for call in called:
            collect(call.settings, call.default, "")
    return found


def _plainest(kind: type[Any], value: Any) -> Any:
    """A class's own defaults where it has them, not those of the preset that came first."""
    try:
        return kind()
    except TypeError:
        return value


def _settings() -> str:
    parts = [
        "# Settings\n\nThe settings that runs keep in `config.json`, by group. On a command line, the name of the "
        "group stands in front: `--train.batch 64`. In Python, each group is a frozen dataclass with these fields "
        "(with `_` for `-`), most of them in `fqgan.config`. The defaults are those of the class; presets differ from "
        "them. "
        f"`{FACTOR}` stands for the number of a factor, from 0.\n"
    ]
    for kind, (names, value) in sorted(groups().items(), key=lambda item: item[1][0][0]):
        title = ", ".join(f"`--{name}*`" for name in names)
        parts.append(f"## {kind.__name__}\n\n{title}\n\n{inspect.cleandoc(kind.__doc__ or '').split(chr(10) * 2)[0]}\n")
        parts.append(_table(options_of(kind, value)))
    return "\n".join(parts)


def _anchor(kind: type[Any]) -> str:
    return kind.__name__.lower()


def _table(options: list[Option], defaults: bool = True) -> str:
    rows = ["| option | default | what it is |", "|---|---|---|"]
    for each in options:
        text = each.text
        if each.group is not None:
            text = f"{text} See [{type(each.group).__name__}](settings.md#{_anchor(type(each.group))}).".strip()
        value = "" if each.group is not None else each.default
        rows.append(f"| `{each.name}`<br>{_cell(each.kind)} | {_cell(value)} | {_cell(text)} |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    """Text in a table: nothing in it ends a cell or begins a tag or emphasis, but in code."""
    parts = text.replace("|", "\\|").split("`")
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"<(?!br>)", "&lt;", parts[i])
        parts[i] = parts[i] if parts[i].strip() == "*required*" else parts[i].replace("*", "\\*").replace("_", "\\_")
    return "`".join(parts)
