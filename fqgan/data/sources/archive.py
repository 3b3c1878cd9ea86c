"""Pictures in .zip files, by random access."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fqgan.base.errors import UnreadableError, UserError
from fqgan.base.files import check_file, reading
from fqgan.data.sources import listing
from fqgan.data.sources.base import Findings, Found, Request, Stored
from fqgan.data.sources.folder import FileSource, match
from fqgan.data.sources.npz import LOCAL_HEADER, header_length
from fqgan.data.sources.place import is_system, labels_of, settle, split_named, walk

FORM = "zip archive"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LARGEST = 2**30  # bytes of a picture, unpacked
_LONGEST_NAME = 4096


class ArchivePlace:
    """A folder inside an archive."""

    def __init__(self, name: str, where: str) -> None:
        self.name, self.where = name, where
        self.inner: dict[str, ArchivePlace] = {}
        self.files: list[str] = []
        self.odd: Counter[str] = Counter()

    @property
    def key(self) -> object:
        return self.where

    @property
    def folders(self) -> list[ArchivePlace]:
        return [self.inner[name] for name in sorted(self.inner)]


class ZipSource(FileSource):
    """The pictures of a .zip, sorted by folder and name as those of a folder are, with the same rules for splits and
    classes; labels also from StyleGAN's `dataset.json` or a metadata file. `UserError` for what is broken, encrypted,
    or holds no picture."""

    def __init__(self, path: Path, request: Request, findings: Findings) -> None:
        findings.form = FORM
        self._path = path
        there = check_file(path)
        with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
        root, entries = _tree(infos)
        while len(root.inner) == 1 and not root.files and not split_named(next(iter(root.inner))):
            root = root.folders[0]  # what was packed lies in a folder of its own
        place, known = settle(root, request, findings)
        assert isinstance(place, ArchivePlace), "an archive holds its own folders"
        directories = list(walk(place, findings))
        names = [f"{d.where}{name}" for d in directories for name in d.pictures]
        if not names:
            raise UserError(f"{path} holds no picture")
        request = replace(request, classes=request.classes or known)

        def read(name: str) -> bytes:
            entry = entries[place.where + name]
            if entry.file_size > _LARGEST:
                raise UserError(f"{path}: {name} is said to have {entry.file_size:,} bytes")
            with reading(f"{path}: {name}", "a list of pictures"), zipfile.ZipFile(path) as archive:
                return archive.read(entry)

        table = listing.metadata_of(place.files, read, request, findings)
        super().__init__(names, "", request.spec, findings)
        found = [entries[place.where + name] for name in names]
        if locked := next((entry for entry in found if entry.flag_bits & 1), None):
            raise UserError(f"{path} is encrypted ({locked.filename}): unpack it first")
        if strange := next((entry for entry in found if entry.compress_type not in _METHODS), None):
            raise UserError(
                f"{path} is compressed in a way that is not read ({strange.filename}): unpack it, or pack anew"
            )
        if cut := next((e for e in found if not 0 <= e.header_offset <= there - e.compress_size), None):
            raise UserError(f"{path} is damaged: {cut.filename} would lie outside of it")
        numbers = [(e.header_offset, e.compress_size, min(e.file_size, 2**62), e.compress_type) for e in found]
        self._places = np.array(numbers, np.int64)
        labels, self.classes = labels_of(place, directories, known, request, findings)
        self.labels = np.repeat(np.array(labels, np.int64), [len(d.pictures) for d in directories])
        self._handle: int | None = None
        if table is not None:
            match(self, table[1], names, request, f"{path}/{table[0]}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}  # a spawned worker opens its own

    def stored(self, index: int) -> Stored:
        offset, packed, size, kind = map(int, self._places[index])
        if size > _LARGEST:
            raise UnreadableError(f"{self.describe(index)} is said to have {size:,} bytes: no picture")
        try:
            if self._handle is None:
                self._handle = os.open(self._path, os.O_RDONLY)
            # at a place of its own in the file: forked processes share the handle and its position
            length = header_length(os.pread(self._handle, LOCAL_HEADER, offset))
            data = os.pread(self._handle, packed, offset + length)
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror}") from None
        if len(data) < packed:
            raise UserError(f"{self._path} has become shorter since it was opened")
        return Stored(self._unpacked(data, size, kind, index), self._files[index])

    def select(self, indices: Sequence[int]) -> None:
        super().select(indices)
        self._places = self._places[list(indices)]

    def describe(self, index: int) -> str:
        return f"{self._files[index]} of {self._path}"

    def names(self) -> Iterable[str]:
        return [self._path.name, *self._files]

    def files(self) -> Iterable[Path]:
        return [self._path]

    def _unpacked(self, data: bytes, size: int, kind: int, index: int) -> bytes:
        if kind == zipfile.ZIP_STORED:
            return data
        try:
            return zlib.decompressobj(-15).decompress(data, max(1, size))  # 0 would be without end
        except zlib.error as error:
            raise UnreadableError(f"{self.describe(index)} is damaged: {error}") from None


def _tree(entries: Iterable[zipfile.ZipInfo]) -> tuple[ArchivePlace, dict[str, zipfile.ZipInfo]]:
    """The folders of an archive, and its files by their paths."""
    root = ArchivePlace("", "")
    by_path: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        path = entry.filename if "/" in entry.filename else entry.filename.replace("\\", "/")  # of some Windows tools
        *folders, name = path.removeprefix("./").lstrip("/").split("/")
        place = root
        hidden = next((each for each in folders if is_system(each)), "")
        if len(path) > _LONGEST_NAME:
            root.odd["files of names too long"] += 1
            continue
        if hidden or name.startswith("."):
            root.odd[f"files in {hidden}" if hidden else "hidden files"] += bool(name)
            continue
        for each in folders:
            place = place.inner.setdefault(each, ArchivePlace(each, f"{place.where}{each}/"))
        if name:
            if place.where + name in by_path:
                root.odd["entries of a name that comes again"] += 1
            else:
                place.files.append(name)
            by_path[place.where + name] = entry
    for place in _all(root):
        place.files.sort()
    return root, by_path


def _all(place: ArchivePlace) -> Iterable[ArchivePlace]:
    waiting = [place]
    while waiting:
        yield (here := waiting.pop())
        waiting += here.inner.values()


def claims(found: Found) -> bool:
    """Whether a file is of this form."""
    return found.suffix == ".zip" or (found.head.startswith(b"PK\3\4") and found.suffix != ".npz")


def open_found(found: Found, request: Request, findings: Findings) -> ZipSource:
    """Open one; `UserError` for several."""
    if len(found.files) > 1:
        raise UserError(f"{request.spec} names {len(found.files)} zip archives: name one, or unpack them into a folder")
    return ZipSource(Path(found.files[0]), request, findings)
