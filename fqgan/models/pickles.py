"""Files of torch.save, whose pickles could run anything: read so that they can't."""

from __future__ import annotations

import pathlib
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fqgan.base.errors import UserError, in_one_line

_HOME = "passed_by"
"""Module of the classes that stand for others."""
_MOST_PASSED_BY = 2000


def _plain_classes() -> list[Any]:
    """What numbers of NumPy and paths are made of; beside what they hold, making them does nothing."""
    scalar = np._core.multiarray.scalar  # pyright: ignore[reportAttributeAccessIssue]
    dtypes = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFD"]
    paths = [pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath]
    older = [(scalar, "numpy.core.multiarray.scalar"), (pathlib.PosixPath, "pathlib._local.PosixPath")]
    return [scalar, np.dtype, *dict.fromkeys(dtypes), *paths, *older]


class PassedBy:
    """Stands where a file has something of a class that is not taken: it holds nothing and does nothing."""

    collects: type | None = None
    """What stands there where that class is a dict or a list: the loader fills no others."""

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        return super().__new__(cls) if cls.collects is None else cls.collects()

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...  # some versions of torch fill anything


def load_pickle(path: Path, *classes: type, pass_by: bool = False) -> Any:
    """What torch.save wrote, memory-mapped on the CPU, by torch's safe loader, which runs nothing.

    Args:
        classes: taken beside tensors and plain data, numbers of NumPy and paths among it.
        pass_by: put `PassedBy`, or an empty dictionary or list, in the place of all other classes, of which nothing is
            imported or run. What torch's loader blocks, the functions of `os` and `sys`, is refused even so.

    Raises:
        UserError: any other class, which it names; truncated and foreign files.
    """
    passed: dict[str, Any] = {}
    while True:
        try:
            return _load(path, [*classes, *_plain_classes(), *((each, name) for name, each in passed.items())])
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # damaged files fail in many ways: pickle, zip, runtime, key and end-of-file errors
            if pass_by and (found := _to_pass_by(error, passed)):
                passed |= found
                continue
            if isinstance(error, pickle.UnpicklingError) and (name := _foreign_class(error, path)):
                taken = ", ".join(
                    ["tensors", "plain data", *(f"{each.__module__}.{each.__name__}" for each in classes)]
                )
                raise UserError(
                    f"{path} asks for {name} when it is opened: refused, as that can run code (taken: {taken})"
                ) from None
            why = in_one_line(error).partition(". ")[0]
            why = "neither a zip archive nor a pickle" if isinstance(error, pickle.UnpicklingError | KeyError) else why
            raise UserError(f"{path} is damaged or no file of torch weights: {why}") from None


def _load(path: Path, classes: list[Any]) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    with torch.serialization.safe_globals(classes), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a foreign pickle is refused in one line of ours
        try:
            return torch.load(path, mmap=True, **options)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, **options)  # the format before torch 1.6 cannot be mapped


def _to_pass_by(error: Exception, passed: Mapping[str, Any]) -> dict[str, Any]:
    """What may stand for the class that the loader stopped at, by name; empty if it stopped at something else."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+) was not an allowed", text):
        # the loader does not say whether a name is one of Python's own
        names = [name for name in (found[1], f"builtins.{found[1]}") if name not in passed]
        return {name: _stand_in(name) for name in names} if len(passed) < _MOST_PASSED_BY else {}
    if found := re.search(rf"(SETITEM|append|extend).* got <class '{_HOME}\.(\S+)'>", text):
        return {found[2]: _stand_in(found[2], dict if found[1] == "SETITEM" else list)}
    return {}


def _stand_in(name: str, collects: type | None = None) -> type:
    return type("PassedBy", (PassedBy,), {"__module__": _HOME, "__qualname__": name, "collects": collects})


def _foreign_class(error: Exception, path: Path) -> str:
    """What a pickle asks for by name and the safe loader does not give; empty if it says no such thing."""
    if found := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error)):
        return found[1]
    # a protocol that the loader does not read at all: the names are in the pickle's text
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for code, value, _ in pickletools.genops(file):
                if code.name in ("GLOBAL", "STACK_GLOBAL"):
                    name = ".".join(value.split()) if value else ".".join(strings[-2:])
                    if name.split(".")[0] not in ("torch", "collections", "argparse"):
                        return name
                elif isinstance(value, str):
                    strings.append(value)
    except ValueError:  # the end of what is a pickle
        pass
    return ""
