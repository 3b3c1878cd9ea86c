"""Images in tars of the WebDataset layout, by random access."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from fqgan.data.decode import decode_image
from fqgan.data.images import EXTENSIONS
from fqgan.errors import UserError

SPAN = 1000
"""Samples of a block at most: a larger tar is cut into several, or shuffling would mix few neighbours only."""
_THREADS = 16  # they wait for storage, most of all over a network
_FORMAT = 1  # of a cached index


class TarIndex(NamedTuple):
    """The samples of one tar: where their pictures lie in the file, in bytes, and their labels."""

    names: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


class TarSource:
    """The samples of tars, in the order of the files, as an `ImageSource` whose blocks are spans of up to `SPAN`.

    Successive members are one sample if their paths agree up to the first dot of the file name, as in WebDataset. Its
    picture is the first member with a picture's extension; samples without one are left out. The label is the integer
    in the member `.cls`, or `label` or `cls` in `.json`; -1 where there is none. Only headers and labels are read to
    find them, once: the index is kept in ~/.cache/fqgan/tar-index until the tar's path, size or time changes.

    Every process opens its files for itself, when they are read. `UserError` for tars that are missing, cut short or
    hold no picture, and for labels that are no integers.
    """

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.name = name
        self.classes: tuple[str, ...] = ()
        self._paths = list(paths)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(_index_of, self._paths)
            indices = list(track(found, "indexing tars", len(self._paths), transient=True, disable=len(paths) < 8))
        self._names = [index.names for index in indices]
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self.labels = np.concatenate([index.labels for index in indices])
        if not len(self.labels):
            raise UserError(f"{name} holds no picture: no sample of its tars has one ({' '.join(EXTENSIONS)})")
        counts = [len(names) for names in self._names]
        self._ends = np.cumsum(counts)
        self.blocks = [size for count in counts for size in _spans(count)]
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._open_limit = 16

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a spawned worker opens its own

    def read(self, index: int) -> tuple[Image.Image, int]:
        tar = self._tar(index)
        size = int(self._sizes[index])
        try:
            # at a place of its own in the file: forked processes share the handle and its position
            data = os.pread(self._file(tar).fileno(), size, int(self._offsets[index]))
        except OSError as error:
            raise UserError(f"{self._paths[tar]} cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise UserError(f"{self._paths[tar]} has become shorter since it was opened")
        return decode_image(data, self.describe(index)), int(self.labels[index])

    def describe(self, index: int) -> str:
        tar = self._tar(index)
        name = bytes(self._names[tar][index - self._ends[tar]]).decode(errors="replace")
        return f"{name} of {self._paths[tar]}"

    def names(self) -> Iterable[str]:
        for path, names in zip(self._paths, self._names, strict=True):
            yield path.name
            yield from (bytes(name).decode("utf-8", "surrogateescape") for name in names)

    def files(self) -> Iterable[Path]:
        return self._paths

    def reserve(self, blocks: int) -> None:
        """Keep `blocks` files open. Shuffled reading needs as many as its window."""
        self._open_limit = blocks

    def _tar(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _file(self, tar: int) -> IO[bytes]:
        if tar in self._open:
            self._open.move_to_end(tar)
            return self._open[tar]
        while self._open and len(self._open) >= self._open_limit:
            self._open.popitem(last=False)[1].close()
        self._open[tar] = self._paths[tar].open("rb")
        return self._open[tar]


def _spans(count: int) -> list[int]:
    """`count` cut into the fewest spans of `SPAN` at most, of nearly equal lengths."""
    parts = -(-count // SPAN)
    return [(i + 1) * count // parts - i * count // parts for i in range(parts)]


def _index_of(path: Path) -> TarIndex:
    """The index of a tar, from the cache if it is there."""
    try:
        status = path.stat()
        key = f"{_FORMAT} {path.resolve()} {status.st_size} {status.st_mtime_ns}"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    cached = Path("~/.cache/fqgan/tar-index").expanduser() / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.npz"
    with suppress(OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile), np.load(cached) as arrays:
        return TarIndex(**arrays)
    index = _scan(path)
    with suppress(OSError):  # a cache that cannot be written costs time only
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f".{os.getpid()}-{cached.name}")
        np.savez(temporary, **index._asdict())
        temporary.replace(cached)
    return index


def _scan(path: Path) -> TarIndex:
    """Read the headers and labels of a tar."""
    rows: list[tuple[bytes, int, int, int]] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = list(archive)
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any end for the end
                raise tarfile.ReadError("its end mark is missing")
            for sample in _samples(members, path):
                if picture := _picture(sample):
                    label = _label(file, sample, path)
                    rows.append(
                        (picture.name.encode("utf-8", "surrogateescape"), picture.offset_data, picture.size, label)
                    )
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} cannot be read as a tar (cut short, or another format?): {error}") from None
    names, *numbers = zip(*rows, strict=True) if rows else ((), (), (), ())
    return TarIndex(np.array(names, dtype=np.bytes_), *(np.array(column, dtype=np.int64) for column in numbers))


def _samples(members: Iterable[tarfile.TarInfo], path: Path) -> Iterator[dict[str, tarfile.TarInfo]]:
    """The samples of a tar as extension -> member. Files without a name before the dot or without a dot belong to
    none, nor do the tar's own notes, such as `__index__/...`."""
    files = [(*_key(member.name), member) for member in members if member.isreg()]
    for _, group in itertools.groupby([file for file in files if file[0]], lambda file: file[0]):
        sample: dict[str, tarfile.TarInfo] = {}
        for _, extension, member in group:
            if extension in sample:
                raise UserError(f"{path} holds {member.name} twice in one sample")
            sample[extension] = member
        yield sample


def _key(name: str) -> tuple[str, str]:
    """Path of a member -> (path up to the first dot of the file name, the rest in lower case), or empty texts."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot or re.match("__[^/]*__/", name):
        return "", ""
    return f"{folder}{slash}{stem}", extension.lower()


def _picture(sample: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """A sample's picture: `x.jpg` rather than `x.mask.jpg`."""
    names = [name for name in sample if f".{name}".endswith(EXTENSIONS)]
    return sample[min(names, key=lambda name: name.count("."))] if names else None


def _label(file: IO[bytes], sample: dict[str, tarfile.TarInfo], path: Path) -> int:
    """The label of a sample; -1 where there is none."""
    value: Any = -1
    for extension in ("json", "cls"):
        if member := sample.get(extension):
            file.seek(member.offset_data)
            text = file.read(member.size)
            try:
                value = int(text) if extension == "cls" else _json_label(json.loads(text))
            except ValueError:
                value = text
            if type(value) is not int or not -1 <= value < 2**31:
                raise UserError(f"{path}: {member.name} must hold an integer label from 0 on, not {value!r:.40}")
    return value


def _json_label(data: Any) -> Any:
    values = [data[key] for key in ("label", "cls") if data.get(key) is not None] if isinstance(data, dict) else []
    return values[0] if values else -1
