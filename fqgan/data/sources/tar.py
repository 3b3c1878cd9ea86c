"""Images in tars of the WebDataset layout, by random access."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.progress import track

from fqgan.base.errors import UserError
from fqgan.base.schema import parse_json
from fqgan.data.formats import EXTENSIONS
from fqgan.data.remote import RemoteFile, is_remote
from fqgan.data.sources import tar_index
from fqgan.data.sources.base import Findings, Found, ImageSource, Request, Stored, listed
from fqgan.data.sources.folder import texts
from fqgan.data.sources.labels import columns_by_name, follow, ordered, to_labels
from fqgan.data.sources.listing import CAPTION_COLUMNS
from fqgan.data.sources.place import split_named
from fqgan.data.sources.tar_index import TarIndex

FORM = "WebDataset tars"
SPAN = 1000
"""Samples of a block at most: a larger tar is cut into several, or shuffling would mix few neighbours only."""
_THREADS = 16  # they wait for storage, most of all over a network


class TarSource(ImageSource):
    """The samples of tars, in the order of the files, whose blocks are spans of up to `SPAN`.

    Members are one sample if their paths agree up to the first dot of the file name, as in WebDataset, wherever they
    stand; up to the last dot where the names themselves hold dots (see `fqgan.data.sources.tar_index`).
    A sample's picture is its member with
    a picture's extension; samples without one are left out and counted. The label is the number or name in the member
    `.cls`, or in `.json`; where a set has none, folders inside the tars are classes as those on disk are. Captions are
    in `.txt` or `.json`. Only headers, labels and names are read to find them, once: the index is kept in
    ~/.cache/fqgan/tar-index until the tar's path, size or time changes.

    Every process opens its files for itself, when they are read. `UserError` for tars that are missing, cut short or
    hold no picture, and for labels that are neither numbers nor names.
    """

    def __init__(self, paths: Sequence[Path | str], request: Request, findings: Findings | None = None) -> None:
        self.name = request.spec
        self.findings = findings or Findings()
        self.findings.form = FORM
        self._remote = {number: RemoteFile(str(path)) for number, path in enumerate(paths) if is_remote(path)}
        self._paths = [self._remote[i].name if i in self._remote else str(path) for i, path in enumerate(paths)]
        key = request.options.label_column
        with ThreadPoolExecutor(_THREADS) as pool:
            given = [self._remote.get(number, path) for number, path in enumerate(self._paths)]
            found = pool.map(lambda file: tar_index.index_of(file, key), given)
            indices = list(track(found, "indexing tars", len(self._paths), transient=True, disable=len(paths) < 8))
        self._names = [index.names for index in indices]
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])
        self._captions = np.concatenate([index.captions for index in indices])
        for index in indices:
            tar_index.add(self.findings, index)
        self._ends = np.cumsum([len(names) for names in self._names])
        if not len(self._offsets):
            raise UserError(f"{self.name} holds no picture: no sample of its tars has one ({' '.join(EXTENSIONS)})")
        if len(_caption_rows := np.flatnonzero(self._captions[:, 1])):
            self.findings.captions_from = f"text members ({len(_caption_rows):,} samples)"
        self._set_labels(indices, request)
        self.blocks = [size for names in self._names for size in _spans(len(names))]
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._open_limit = 16

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # a spawned worker opens its own

    def stored(self, index: int) -> Stored:
        data = self._pread(index, int(self._sizes[index]), int(self._offsets[index]))
        return Stored(data, self._member(index))

    def describe(self, index: int) -> str:
        return f"{self._member(index)} of {self._paths[self._tar(index)]}"

    def names(self) -> Iterable[str]:
        for path, names in zip(self._paths, self._names, strict=True):
            yield os.path.basename(path)
            yield from (bytes(name).decode("utf-8", "surrogateescape") for name in names)

    def files(self) -> Iterable[Path]:
        return [Path(path) for number, path in enumerate(self._paths) if number not in self._remote]

    def captions(self) -> list[list[str]] | None:
        if not self.findings.captions_from:
            return None
        return [self._caption(index) for index in range(len(self))]

    def reserve(self, blocks: int) -> None:
        """Keep `blocks` files open. Shuffled reading needs as many as its window."""
        self._open_limit = blocks

    def _caption(self, index: int) -> list[str]:
        offset, size, is_json = map(int, self._captions[index])
        if not size:
            return []
        data = self._pread(index, size, offset)
        if not is_json:
            return [data.decode("utf-8", "replace").strip()]
        content = parse_json(data, f"the caption of {self.describe(index)}")
        keys = columns_by_name(list(content), CAPTION_COLUMNS) if isinstance(content, dict) else []
        return texts(content[keys[0]]) if keys else []

    def _set_labels(self, indices: list[TarIndex], request: Request) -> None:
        """Labels of the samples' own members, else of the folders in the tars."""
        numbers = np.concatenate([index.labels for index in indices])
        words = np.concatenate([index.words.astype(object) for index in indices])
        self.labels, self.classes = np.full(len(numbers), -1, np.int64), ()
        named = words != b""
        if request.options.labels == "none":
            return
        if not named.any() and (numbers < 0).all():
            self._label_by_folder(request)
            return
        self.findings.labels_from = f".cls or .json members ({int((named | (numbers >= 0)).sum()):,} samples)"
        if not named.any():
            self.labels, self.classes = to_labels(numbers.tolist(), request.classes, self.name, self.findings)
            return
        pairs = zip(numbers.tolist(), words.tolist(), strict=True)
        values = [word.decode("utf-8", "replace") if word else None if number < 0 else number for number, word in pairs]
        self.labels, self.classes = to_labels(values, request.classes, self.name, self.findings)

    def _label_by_folder(self, request: Request) -> None:
        members = (self._member(index).removeprefix("./").lstrip("/") for index in range(len(self)))
        folders = [member.rpartition("/")[0] for member in members]
        tops = sorted(set(folders))
        common = os.path.commonpath(tops) if all(tops) else ""
        classes = [folder.removeprefix(common).lstrip("/").partition("/")[0] for folder in folders]
        if len(set(classes)) < 2 or not all(classes):
            return
        if like := [name for name in set(classes) if split_named(name)]:
            raise UserError(
                f"{self.name} holds the folders {listed(sorted(like))}, which are splits, in one: pack a tar for each, "
                "or unpack it and name the folder; --data.labels none reads all as one set"
            )
        names = ordered(set(classes), self.findings, request.options.labels == "folders")
        if names is None:
            return
        known, self.classes = follow(names, request.classes, self.findings)
        label_of = dict(zip(names, known, strict=True))
        self.labels = np.array([label_of[name] for name in classes], np.int64)
        self.findings.labels_from = "folder names in the tars"

    def _member(self, index: int) -> str:
        tar = self._tar(index)
        return bytes(self._names[tar][index - self._ends[tar]]).decode(errors="backslashreplace")

    def _tar(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _pread(self, index: int, size: int, offset: int) -> bytes:
        """Bytes of the tar that holds a sample."""
        tar = self._tar(index)
        if tar in self._remote:
            return self._remote[tar].pread(size, offset)
        try:
            # at a place of its own in the file: forked processes share the handle and its position
            data = os.pread(self._file(tar).fileno(), size, offset)
        except OSError as error:
            raise UserError(f"{self._paths[tar]} cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise UserError(f"{self._paths[tar]} has become shorter since it was opened")
        return data

    def _file(self, tar: int) -> IO[bytes]:
        if tar in self._open:
            self._open.move_to_end(tar)
            return self._open[tar]
        while self._open and len(self._open) >= self._open_limit:
            self._open.popitem(last=False)[1].close()
        self._open[tar] = open(self._paths[tar], "rb")  # noqa: SIM115
        return self._open[tar]


def _spans(count: int) -> list[int]:
    """`count` cut into the fewest spans of `SPAN` at most, of nearly equal lengths."""
    parts = -(-count // SPAN)
    return [(i + 1) * count // parts - i * count // parts for i in range(parts)]


def claims(found: Found) -> bool:
    """Whether files are of this form."""
    return found.suffix == ".tar" or found.head[257:262] == b"ustar"


def open_found(found: Found, request: Request, findings: Findings) -> TarSource:
    """Open them."""
    return TarSource(found.files, request, findings)
