"""What is known of a setting beside its type: the range of its numbers, and whether a resumed run may change it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypedDict, TypeVar, Unpack

from fqgan.base.errors import UserError
from fqgan.base.schema import LARGEST, digits

_LARGEST_OF_MODELS = 2**16  # larger ones, from a broken file, would keep a machine busy before anything is compared
_ENTRIES = 1000
T = TypeVar("T")


class Known(TypedDict, total=False):
    """What may be said of a setting."""

    least: int
    """Its numbers are at least this; 0 where nothing else is said."""
    positive: bool
    """They are above 0."""
    below: float
    """They are below this."""
    most: int
    """Integers are at most this; 2^16 in a model's architecture, elsewhere what torch takes."""
    changeable: bool
    """Whether a resumed run may change it; as `CHANGEABLE` of its class says, if it has one, else not. Never what the
    architecture, the order of the data or random numbers depend on."""
    rare: bool
    """Files name it only where it is not its default: what was written before it came stays the same."""


def setting(default: T, **known: Unpack[Known]) -> T:
    """A field of a configuration, with what is known of it."""
    return field(default=default, metadata=known)


def check_ranges(config: Any, prefix: str = "") -> None:
    """`UserError` for the first number outside its range; infinity and not-a-number are outside every range."""
    for name, value, known in _leaves(config, prefix):
        if isinstance(value, tuple) and len(value) > _ENTRIES:
            raise UserError(f"{name} has {len(value)} entries, at most {_ENTRIES} make sense")
        most = known.get("most") or (_LARGEST_OF_MODELS if name.startswith("model.") else LARGEST - 1)
        low, high, positive = known.get("least", 0), known.get("below", math.inf), known.get("positive", False)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str):
                continue
            if isinstance(number, int) and number > most:
                raise UserError(f"{name} must be at most {most}, got {digits(number)}")
            if not low <= number < high or (positive and not number):
                rule = "above 0" if positive else f"at least {low}" + (f" and below {high}" if high < math.inf else "")
                raise UserError(f"{name} must be {rule}, got {number}")


def changeable(config: Any) -> set[str]:
    """Dotted names of the settings that a resumed run may change, as far as it depends on nothing else."""
    return {name for name, _, known in _leaves(config, "") if known["changeable"]}


def _leaves(config: Any, prefix: str) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Dotted name, value, and what is known of every leaf of a config."""
    for each in fields(config):
        name, value = f"{prefix}{each.name}", getattr(config, each.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for i, item in enumerate(value):
                yield from _leaves(item, f"{name}.{i}.")
        else:
            yield name, value, {"changeable": getattr(config, "CHANGEABLE", False), **each.metadata}


def at_least(smallest: int, **values: int) -> None:
    """`UserError` that names the first option below `smallest`."""
    for name, value in values.items():
        if value < smallest:
            raise UserError(f"--{name} must be at least {smallest}, got {value}")
        if value >= LARGEST:
            raise UserError(f"--{name} must be below 2^63, got {digits(value)}")
