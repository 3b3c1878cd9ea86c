"""Config dataclasses to and from plain dicts and JSON files, and how two of them differ."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from fqgan.base.errors import UserError, brief, in_one_line
from fqgan.base.files import check_file

FORMAT_VERSION = 1
_LONGEST = 2**26  # bytes of a JSON file
_DEEPEST = 50  # objects and lists inside each other
LARGEST = 2**63
"""What integers must stay below: torch and NumPy take no larger ones."""
T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON-ready dict of a config, with `format_version`; without settings that are `rare` where they have their
    default, so that what is written of all others stays what it was."""
    return {"format_version": FORMAT_VERSION, **_written(config)}


def _written(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        own = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            field.name: _written(item)
            for field, item in own.items()
            if not field.metadata.get("rare") or item != field.default
        }
    if type(value) in (list, tuple):
        return type(value)(map(_written, value))
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    return value


def from_dict(cls: type[T], data: dict[str, Any], source: str = "config") -> T:
    """Build a config from `to_dict`'s form. Unknown keys and wrong types raise `UserError`, which names `source`."""
    data = dict(data)
    version = data.pop("format_version", FORMAT_VERSION)
    data.pop("history", None)  # of a run: kept beside its settings
    if version != FORMAT_VERSION:
        raise UserError(f"{source}: format_version {version} is not {FORMAT_VERSION}: of another version of fqgan")
    return from_values(cls, data, source)


def from_values(cls: type[T], values: dict[str, Any], source: str) -> T:
    """Build a config from the values of its fields. Unknown names and wrong types raise `UserError`, which names
    `source`; text is taken for a path where one is wanted."""
    try:
        return _build(cls, values, "")
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Field -> its type; Python compiles all of them anew at each call."""
    return typing.get_type_hints(cls)


def _build(cls: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(cls), typing.get_args(cls)
    if hasattr(cls, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise UserError(f"key {where.rstrip('.') or 'root'} must be an object, got {brief(value)}")
        value = getattr(cls, "from_older", dict)(value)
        hints = _hints(cls)
        for key in value:
            if key not in hints:
                raise UserError(f"unknown key {where + key!r}{did_you_mean(key, hints)}")
        for field in dataclasses.fields(cls):
            if field.name not in value and field.default is field.default_factory is dataclasses.MISSING:
                raise UserError(f"key {where + field.name!r} is missing")
        return cls(**{key: _build(hints[key], item, f"{where}{key}.") for key, item in value.items()})
    name = where.rstrip(".")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"key {name} must be a list, got {brief(value)}")
        return tuple(_build(args[0], item, f"{where}{i}.") for i, item in enumerate(value))
    if origin is Literal:
        if value not in args:
            raise UserError(f"key {name} must be one of {', '.join(map(str, args))}; got {brief(value)}")
        return value
    if origin is types.UnionType:
        cls = args[0]
    if cls is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise UserError(f"key {name} must be below 2^63, got {digits(value)}")
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, cls) or (cls is int and isinstance(value, bool)):
        raise UserError(f"key {name} must be {cls.__name__}, got {brief(value)}")
    return value


def without(data: dict[str, Any], **gone: Any) -> dict[str, Any]:
    """A config of version 0.1 without settings that are gone, each given with its default; `UserError` where one has
    another value."""
    for name, unused in gone.items():
        if data.get(name, unused) != unused:
            raise UserError(f"{name} {brief(data[name])}: this setting of version 0.1 is gone")
    return {name: value for name, value in data.items() if name not in gone}


def plain(value: Any, several: bool) -> Any:
    """A setting without numpy's and torch's types, and a path as text; `several`: as a tuple."""
    value = value.tolist() if hasattr(value, "tolist") else value
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not several:
        return value
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return (value,)
    return tuple(plain(each, several=False) for each in value)


def digits(number: int) -> str:
    """An integer in words that stay short."""
    return str(number) if number.bit_length() <= 128 else f"a number of {number.bit_length()} bits"


def did_you_mean(word: str, known: Any) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing."""
    nearest = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def flatten(config: Any) -> dict[str, Any]:
    """Dotted name -> value of every leaf of a config, or of a dict in the form that one has as JSON."""
    return dict(_leaves(config if isinstance(config, dict) else dataclasses.asdict(config), ""))


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) or (isinstance(value, list | tuple) and value and isinstance(value[0], dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


def diff(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) of every leaf in which two configs differ."""
    a, b = flatten(old), flatten(new)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def save(config: Any, path: Path) -> None:
    """Write a config as JSON."""
    path.write_text(json.dumps(to_dict(config), indent=2) + "\n")


def load(cls: type[T], path: Path) -> T:
    """Read a config from JSON. Missing or broken files raise `UserError`."""
    return from_dict(cls, load_json(path), str(path))


def load_json(path: Path, longest: int = _LONGEST) -> dict[str, Any]:
    """A JSON object from a file of at most `longest` bytes; `UserError` when it is missing or broken."""
    data = parse_json(read_text(path, longest), path)
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object")
    return data


def parse_json(text: str | bytes, source: Path | str) -> Any:
    """What JSON says. `UserError` that names `source` for what is none, and for what is nested so deeply that those who
    go through it would fail."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is no readable JSON file: {in_one_line(error)}") from None
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(_DEEPEST):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for each in inside for item in each if isinstance(item, dict | list)]
        if not level:
            return data
    raise UserError(f"{source} is no readable JSON file: nested more than {_DEEPEST} deep")


def read_text(path: Path, longest: int = _LONGEST) -> str:
    """The text of a file of at most `longest` bytes; `UserError` for anything else, a pipe or folder among it."""
    check_file(path, longest)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8") from None


def entry(
    data: Any,
    name: str,
    kind: type[T],
    source: Path | str,
    holds: Callable[[T], Any] = lambda value: True,
    rule: str = "",
    default: T | None = None,
) -> T:
    """An entry of what was read from a file. `UserError` names the file and the entry where it is missing, of another
    type, or not as it must be.

    Args:
        holds: whether a value is as it must be.
        rule: how the message puts that.
        default: of a file without this entry, as older versions wrote.
    """
    if not isinstance(data, dict):
        raise UserError(f"{source} holds no JSON object")
    value = data.get(name, default)
    if value is None:
        raise UserError(f"{source}: {name} is missing")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or not holds(value):
        raise UserError(f"{source}: {name} must be {kind.__name__} {rule}".rstrip() + f", got {str(value)[:40]}")
    return value


def is_number(value: Any) -> bool:
    """Whether it is a number to calculate with: no truth value, and no integer of hundreds of digits."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def history(path: Path) -> list[Any]:
    """What earlier resumes changed, as a run's config.json keeps it."""
    return entry(load_json(path), "history", list, path, default=[])


def finite(value: Any) -> Any:
    """JSON knows no infinity: null instead, at any depth of dicts."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """In which entries two fingerprints differ, numbers as `old -> new`; empty if in none. An entry that one of them
    lacks is of another version and says nothing."""
    names = [name for name, value in new.items() if old.get(name, value) != value]
    numbers = [f"{name}: {old[name]} -> {new[name]}" for name in names if isinstance(new[name], int)]
    return ", ".join(numbers or [f"other {name}" for name in names])
