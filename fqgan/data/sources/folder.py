"""Picture files: in folders, with or without classes, or named by a list or a glob."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fqgan.base.errors import UserError
from fqgan.data.formats import EXTENSIONS
from fqgan.data.sources import listing
from fqgan.data.sources.base import Findings, Found, ImageSource, Request, Stored, listed
from fqgan.data.sources.labels import to_labels
from fqgan.data.sources.listing import Rows
from fqgan.data.sources.place import KINDS, Folder, count_ignored, extension_of, labels_of, settle, walk

FORM = "image folder"


class FileSource(ImageSource):
    """Picture files, in the order given; labels of -1 until somebody sets others."""

    def __init__(self, files: Sequence[str], folder: str, name: str, findings: Findings) -> None:
        self.name, self.findings = name, findings
        self._files, self._folder = list(files), folder
        self._captions: list[list[str]] | None = None
        self.labels = np.full(len(self._files), -1, np.int64)
        self.blocks = [len(self._files)]

    def stored(self, index: int) -> Stored:
        file = self._files[index]
        name = os.path.relpath(file, self._folder)
        return Stored(Path(file), os.fsencode(name).decode(errors="replace"))

    def describe(self, index: int) -> str:
        return self._files[index]

    def names(self) -> Iterable[str]:
        return (file.removeprefix(f"{self._folder}/") for file in self._files)  # relpath takes seconds for a million

    def files(self) -> Iterable[Path]:
        return map(Path, self._files)

    def captions(self) -> list[list[str]] | None:
        return self._captions

    def paths(self) -> Sequence[str]:
        """Of the pictures, in order."""
        return self._files

    def select(self, indices: Sequence[int]) -> None:
        """Keep some of the pictures, in this order."""
        self._files = [self._files[i] for i in indices]
        self.labels = self.labels[list(indices)]
        self.blocks = [len(self._files)]

    def adopt(self, rows: Rows, places: Sequence[int], request: Request, where: str) -> None:
        """Take labels and captions from rows of a list; `places` are the pictures that they stand for."""
        findings = self.findings
        if rows.labels is not None and request.options.labels != "none":
            labels, self.classes = to_labels(rows.labels, request.classes, where, findings)
            self.labels = np.full(len(self), -1, np.int64)
            self.labels[list(places)] = labels
            findings.labels_from = f"{rows.label_column} of {os.path.basename(where)}"
        if rows.captions is not None:
            self._captions = [[] for _ in self._files]
            for place, cell in zip(places, rows.captions, strict=True):
                self._captions[place] = texts(cell)
            findings.captions_from = f"{rows.caption_column} of {os.path.basename(where)}"


def open_pictures(folder: Folder, request: Request, findings: Findings) -> FileSource:
    """The pictures below a folder, sorted; labels from its sub-folders (`place.labels_of`) or from a metadata file in
    it (`listing.METADATA`). `UserError` where there is none."""
    findings.form = FORM
    root, known = settle(folder, request, findings)
    assert isinstance(root, Folder), "a folder on disk holds folders on disk"
    directories = list(walk(root, findings))
    numbers, classes = labels_of(root, directories, known, request, findings)
    files = list(itertools.chain(*([f"{root.path}/{d.where}{name}" for name in d.pictures] for d in directories)))
    if not files:
        others = "; ".join(f"{number:,} {kind}" for kind, number in findings.ignored.most_common(5))
        raise UserError(
            f"{request.spec} holds no picture ({' '.join(EXTENSIONS)}), parquet file or tar"
            + (f", but {others}" if others else "")
            + "".join(f"; {warning}" for warning in findings.warnings)
        )
    source = FileSource(files, root.path, request.spec, findings)
    source.classes = classes
    source.labels = np.repeat(np.array(numbers, np.int64), [len(d.pictures) for d in directories])
    _add_metadata(source, root, folder, known, request)
    return source


def _add_metadata(source: FileSource, root: Folder, above: Folder, known: tuple[str, ...], request: Request) -> None:
    """Labels, captions and splits of a metadata file in the folder where the pictures begin, or in the one that the
    user named; of Kaggle's table, where the pictures have no label."""
    request = replace(request, classes=request.classes or known)
    for place in dict.fromkeys((root, above)):

        def read(name: str, place: Folder = place) -> bytes:
            return listing.read_bytes(Path(place.path, name))

        if found := listing.metadata_of(place.files, read, request, source.findings):
            names = [file.removeprefix(f"{place.path}/") for file in source.paths()]
            match(source, found[1], names, request, f"{request.spec}/{found[0]}")
            return
    if not source.classes and (rows := listing.kaggle_labels(root.path, request)):
        names = [os.path.basename(file) for file in source.paths()]
        if set(names) & set(rows.paths):
            match(source, rows, names, request, f"{request.spec}/{rows.label_column}")


def match(source: FileSource, rows: Rows, names: Sequence[str], request: Request, where: str) -> None:
    """Give pictures (called `names`, one each) what the rows of a metadata file say, and keep those of the split where
    it tells of several; rows without a picture, and pictures without a row, are counted in the findings."""
    findings, base = source.findings, os.path.basename(where)
    findings.ignored[f".{extension_of(base)}"] -= 1
    findings.ignored = +findings.ignored  # drops what is zero now
    findings.ignored.update(f"column {name} of {base}" for name in rows.ignored)
    whole = rows
    rows = listing.of_split(rows, request, findings)
    if whole.splits is not None and whole.labels is not None and not request.classes:
        # the labels of all splits have one meaning
        request = replace(request, classes=to_labels(whole.labels, (), where, Findings())[1])
    place_of = {name: i for i, name in enumerate(names)}
    shared = Counter(map(os.path.basename, names))
    by_base = {base: i for name, i in place_of.items() if shared[base := os.path.basename(name)] == 1}
    found = [
        place_of.get(path := posixpath.normpath(row), by_base.get(path.removeprefix("images/"), -1))
        for row in rows.paths
    ]
    kept = [row for row, place in enumerate(found) if place >= 0]
    if twice := [names[place] for place, count in Counter(found).items() if count > 1 and place >= 0]:
        raise UserError(f"{where} names {listed(twice)} twice")
    if len(kept) < len(rows.paths):
        absent = next(path for path, place in zip(rows.paths, found, strict=True) if place < 0)
        findings.warn(f"{base} names {len(rows.paths) - len(kept):,} pictures that are not there, such as {absent}")
    if not kept:
        return
    if whole.splits is not None:
        if strangers := len(names) - len({posixpath.normpath(row) for row in whole.paths} & set(names)):
            findings.warn(f"{strangers:,} pictures do not stand in {base}, which tells of splits: they are not read")
        source.select([found[row] for row in kept])
        source.adopt(rows.take(kept), range(len(kept)), request, where)
        return
    if without := len(names) - len(kept):
        findings.warn(f"{without:,} pictures do not stand in {base}")
    source.adopt(rows.take(kept), [found[row] for row in kept], request, where)


def open_list(path: Path, request: Request, findings: Findings) -> FileSource:
    """The pictures that a list names, in its order."""
    findings.form = listing.FORM
    whole = listing.read_list(path, request)
    rows = listing.of_split(whole, request, findings)
    files = listing.resolve(rows, path)
    if whole is not rows and whole.labels is not None and not request.classes:  # all splits' labels have one meaning
        names = to_labels(whole.labels, (), str(path), Findings())[1]
        request = replace(request, classes=names)
    source = FileSource(files, str(path.parent), request.spec, findings)
    if rows.ignored:
        findings.ignored.update(f"column {name}" for name in rows.ignored)
    source.classes = request.classes
    source.adopt(rows, range(len(files)), request, str(path))
    return source


def texts(value: object) -> list[str]:
    """The captions in a cell: a text, a list of them, or objects with a text `raw`."""
    cells = value if isinstance(value, list) else [value]
    found = [each.get("raw") if isinstance(each, dict) else each for each in cells]
    return [each for each in found if isinstance(each, str)]


def claims(found: Found) -> bool:
    """Whether it is a folder, a list, or picture files."""
    single = len(found.files) == 1 and found.suffix in listing.SUFFIXES
    return found.folder is not None or single or KINDS.get(found.suffix[1:]) == "picture"


def open_found(found: Found, request: Request, findings: Findings) -> FileSource:
    """Open it."""
    if found.folder is not None:
        return open_pictures(found.folder, request, findings)
    if found.suffix in listing.SUFFIXES:
        return open_list(Path(found.files[0]), request, findings)
    findings.form = "picture files"
    pictures = [file for file in found.files if KINDS.get(extension_of(file)) == "picture"]
    count_ignored(set(found.files).difference(pictures), findings)
    return FileSource(
        pictures, os.path.commonpath([os.path.dirname(file) or "." for file in pictures]), request.spec, findings
    )
