"""Whether a path may be written: never an input, never somebody's own. Asked before any work is done."""

from __future__ import annotations

import glob
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from fqgan.base.errors import UserError

_LOOKED_AT = 2**20  # bytes
_BEGINNINGS = {".json": (0, b"{"), ".npz": (0, b"PK"), ".safetensors": (8, b"{")}
"""Where what this program writes begins with what."""


def check_output(
    path: Path, *, folder: bool, option: str = "--out", inputs: Iterable[str | Path] = (), mark: str = ""
) -> None:
    """`UserError` for an output that cannot be written or would destroy something.

    That is: a folder where a file is asked for and the reverse, a pipe or device, a file below a file, an input or the
    folder that it lies in, a folder in an image folder, and a file of another kind.

    Args:
        path: the output.
        folder: whether it is one.
        inputs: paths and data specs that are read; what is no local path is passed over.
        mark: words that a file of this kind holds near its beginning; one that is there without them is somebody's.
    """
    try:
        str(path).encode()  # TensorBoard and others write no other names
        if "\0" in str(path):
            raise ValueError
        _check_place(path, folder, option)
        for given in _local(inputs):
            _check_apart(path, given, folder, option)
        if not folder and path.exists():
            _check_kind(path, option, mark.encode())
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{option} {str(path)!r} is no name of a file") from None


def _check_place(path: Path, folder: bool, option: str) -> None:
    if path.exists():
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode) != folder:
            kinds = ("file", "folder") if folder else ("folder", "file")
            raise UserError(f"{option} {path} is a {kinds[0]}: name a {kinds[1]}")
        if not folder and not stat.S_ISREG(mode):
            raise UserError(f"{option} {path} is a pipe or device: name a file")
    elif path.is_symlink() and not path.resolve().parent.exists():
        raise UserError(f"{option} {path} is a link to {path.readlink()}, where nothing can be made")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{option} {path}: {parent} is a file, not a folder")


def _check_apart(path: Path, given: Path, folder: bool, option: str) -> None:
    here, there = path.resolve(), given.resolve()
    if here == there:
        raise UserError(f"{option} {path} is an input: choose another name")
    if folder and there.is_file() and there.parent == here:
        raise UserError(f"{option} {path} is the folder of the input {given}: choose another one")
    if folder and there in here.parents and _holds_data(there):
        raise UserError(f"{option} {path} lies in the input {given}, and would be read as a part of it: choose another")


def _holds_data(folder: Path) -> bool:
    """Whether a folder is an image folder, not one that this program makes and keeps its results in."""
    return not any((folder / name).exists() for name in ("config.json", "manifest.json", "samples.json"))


def _check_kind(path: Path, option: str, mark: bytes) -> None:
    """A file that is there must begin as those do that this program writes, and hold the mark."""
    start, wanted = _BEGINNINGS.get(path.suffix.lower(), _BEGINNINGS[".json"])
    with path.open("rb") as file:
        begins = file.read(start + _LOOKED_AT)
    if begins and not (begins[start:].lstrip().startswith(wanted) and mark in begins):
        raise UserError(f"{option} {path} holds something else than this command writes: choose another name")


def _local(inputs: Iterable[str | Path]) -> Iterator[Path]:
    """Paths of inputs that are here."""
    for given in inputs:
        words = [str(given)] if Path(given).exists() else str(given).split(",")
        for word in filter(None, words):
            path = Path(word).expanduser()
            if path.exists():
                yield path
            elif glob.has_magic(word):
                yield from (Path(found) for found in glob.iglob(str(path)))
