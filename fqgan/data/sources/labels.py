"""From what data sets call their classes to labels: whole numbers from 0 on, -1 where there is none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fqgan.base.errors import UserError
from fqgan.data.sources.base import Findings, listed

# numbers of five digits or more, or a word for a part and a number: what tools call the folders they cut a set into
_SHARD = re.compile(r"\d{5,}|(shard|part|chunk|batch|bucket|block)[-_ ]?\d+", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
LARGEST = 2**31
"""No label is as large."""


def to_labels(
    values: Sequence[Any], known: tuple[str, ...], where: str, findings: Findings
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Labels and class names of raw values: whole numbers, names, truth values, or None.

    Numbers are labels as they are, names become classes in sorted order, or in that of `known`. `UserError` that names
    `where` for numbers beside names, lists of several labels, fractions, and numbers that are no class.
    """
    plain = [_plain(value, where) for value in values]
    words = sorted({value for value in plain if isinstance(value, str)}, key=_in_order)
    if not words and (by_name := _by_number(plain, known)) is not None:
        return by_name, known
    if not words:
        labels = np.array([-1 if value is None else value for value in plain], dtype=np.int64)
        check_labels(labels, known, where)
        return labels, known
    if any(isinstance(value, int) for value in plain):
        number = next(value for value in plain if isinstance(value, int))
        raise UserError(f"{where} holds numbers such as {number} beside names such as {words[0]!r}: use one kind")
    names = known or tuple(words)
    number_of = {name: number for number, name in enumerate(names)}
    if unknown := [word for word in words if word not in number_of]:
        count = sum(value in unknown for value in plain) if len(unknown) < 100 else 0
        pictures = f" ({count:,} pictures)" if count else ""
        findings.warn(f"{listed(unknown)} stand in no class list: no label for them{pictures}")
    return np.array([-1 if value is None else number_of.get(str(value), -1) for value in plain], dtype=np.int64), names


def _in_order(word: str) -> tuple[bool, float, str]:
    """Numbers before words, and by their value."""
    number = _DECIMAL.fullmatch(word) is not None
    return (not number, float(word) if number else 0.0, word)


def _by_number(values: Sequence[Any], known: tuple[str, ...]) -> npt.NDArray[np.int64] | None:
    """Labels of numbers that are names of classes, as where training's folders are called 1, 2 and 3; None where the
    classes are not called by numbers."""
    if not known or not all(_NUMBER.fullmatch(name) for name in known):
        return None
    number_of = {int(name): label for label, name in enumerate(known)}
    if any(value is not None and value != -1 and value not in number_of for value in values):
        return None
    return np.array([-1 if value is None else number_of.get(value, -1) for value in values], np.int64)


def _plain(value: Any, where: str) -> int | str | None:
    """A raw label as a number, a name, or None."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        if not -LARGEST <= value < LARGEST:
            raise UserError(f"{where} holds {value!r:.30}, which is no class: labels are whole numbers from 0 on")
        return int(value)
    if isinstance(value, float) and value != value:  # tables write a missing value so
        return None
    what = f"{len(value)} labels for one picture" if isinstance(value, list | tuple) else f"{value!r:.40}"
    raise UserError(
        f"{where} holds {what}: a whole number or a name is needed; name another column with --data.label-column, or "
        "leave labels out with --data.labels none"
    )


def check_labels(labels: npt.NDArray[np.int64], classes: tuple[str, ...], where: str) -> None:
    """`UserError` for the first label that is neither -1 (none) nor the number of a class."""
    wrong = (labels < -1) | (labels >= (len(classes) or LARGEST))
    if wrong.any():
        row = int(wrong.argmax())
        known = f"the {len(classes)} classes are 0 to {len(classes) - 1}, and " if classes else ""
        raise UserError(f"row {row} of {where} has the label {labels[row]}: {known}-1 stands for none")


def ordered(folders: Iterable[str], findings: Findings, insist: bool = False) -> list[str] | None:
    """Names of class folders in the order of their labels; None where they are named like shards, which are no classes.

    Numbers count as numbers (2 before 10) where all names are some.
    """
    names = sorted(folders)
    if not insist and names and all(_SHARD.fullmatch(name) for name in names):
        findings.warn(
            f"the folders {listed(names)} are named like shards, so they are taken for no classes, and no picture has "
            "a label: --data.labels folders takes them for classes"
        )
        return None
    if not names or not all(_NUMBER.fullmatch(name) for name in names):
        return names
    names.sort(key=lambda name: (int(name), name))
    numbers = [int(name) for name in names]
    if numbers != list(range(len(names))):
        findings.warn(
            f"the class folders are numbers from {names[0]} to {names[-1]}, but not 0 to {len(names) - 1}: the labels "
            f"are 0 to {len(names) - 1} in their order"
        )
    return names


def follow(names: Sequence[str], known: tuple[str, ...], findings: Findings) -> tuple[list[int], tuple[str, ...]]:
    """The label of each class name, and all class names: the names' own order, or that of `known`."""
    if not known:
        return list(range(len(names))), tuple(names)
    number_of = {name: number for number, name in enumerate(known)}
    if unknown := [name for name in names if name not in number_of]:
        findings.warn(f"{listed(unknown)} stand in no class list: no label for their pictures")
    return [number_of.get(name, -1) for name in names], known


def columns_by_name(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The columns that go by one of the `wanted` names, in the order of these; capitals do not matter."""
    lower: dict[str, str] = {}
    for name in names:
        lower.setdefault(name.lower(), name)
    return [lower[word] for word in wanted if word in lower]


def joined(tables: Sequence[tuple[str, ...]], names: Sequence[str]) -> tuple[str, ...]:
    """The class names of several files, which must be the same; in another order they are no contradiction, as labels
    can follow. `UserError` that names the files."""
    given = [(table, name) for table, name in zip(tables, names, strict=True) if table]
    for table, name in given:
        if Counter(table) != Counter(given[0][0]):
            raise UserError(
                f"{given[0][1]} and {name} name other classes ({listed(given[0][0])} and {listed(table)}): they are no "
                "parts of one set; name the files of one, or give all names with --data.classes"
            )
    return given[0][0] if given else ()
