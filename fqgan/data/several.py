"""Pictures that a command names: files, folders and other sets, one after another."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from fqgan.base.errors import UserError
from fqgan.config import SourceOptions
from fqgan.data.depth import Ranges, parse_range
from fqgan.data.headers import header
from fqgan.data.sources import open_source
from fqgan.data.sources.base import Findings, ImageSource, Stored, announce
from fqgan.data.sources.folder import FileSource
from fqgan.data.sources.listing import SUFFIXES
from fqgan.data.sources.place import KINDS, extension_of

_NO_PICTURES = {"npz", *(kind for kind, holds in KINDS.items() if holds != "picture"), *(s[1:] for s in SUFFIXES)}
"""Extensions of files that hold sets."""


class Several(ImageSource):
    """Sources one after another, without labels."""

    def __init__(self, sources: Sequence[ImageSource], options: SourceOptions) -> None:
        self.sources, self.options, self.findings = sources, options, Findings("several")
        self.name = sources[0].name if len(sources) == 1 else "the pictures"
        self.labels = np.full(sum(map(len, sources)), -1, np.int64)
        self.blocks = [block for source in sources for block in source.blocks]
        self._ends = np.cumsum([len(source) for source in sources])

    def _place(self, index: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.sources[number], index - int(self._ends[number]) + len(self.sources[number])

    def read(self, index: int) -> tuple[Image.Image, int]:
        source, place = self._place(index)
        return source.read(place)[0], -1

    def stored(self, index: int) -> Stored | None:
        source, place = self._place(index)
        return source.stored(place)

    def describe(self, index: int) -> str:
        source, place = self._place(index)
        return source.describe(place)

    def names(self) -> Iterable[str]:
        return (name for source in self.sources for name in source.names())

    def files(self) -> Iterable[Path]:
        return (file for source in self.sources for file in source.files())

    def reserve(self, blocks: int) -> None:
        for source in self.sources:
            source.reserve(blocks)

    def stems(self) -> list[str]:
        """A relative path without an extension for each picture, no two alike on any file system.

        Files are called as they are, those of a folder by their path below it. Where several things are named, a
        folder's own name comes first. Pictures that are no files are called by their number. What would be alike gets
        a number at its end.
        """
        tops = distinct(_top(source.name) for source in self.sources if not isinstance(source, _Files))
        return list(distinct(stem for source in self.sources for stem in self._stems_of(source, tops)))

    def _stems_of(self, source: ImageSource, tops: Iterator[str]) -> Iterator[str]:
        if isinstance(source, _Files):
            return (Path(path).stem for path in source.paths())
        top = next(tops)
        above = PurePosixPath(top) if len(self.sources) > 1 else PurePosixPath()
        if not isinstance(source, FileSource):
            return (str(above / f"{i:06d}") for i in range(len(source)))
        paths = (PurePosixPath(source.stored(i).path) for i in range(len(source)))
        # a list may name pictures beside its folder
        return (str(above.joinpath(*(w for w in path.parts if w not in ("..", "/"))).with_suffix("")) for path in paths)


class _Files(FileSource):
    """Pictures that were named one by one."""


def open_several(specs: Sequence[str], options: SourceOptions, size: int = 0) -> Several:
    """Open picture files and whatever `open_source` understands; tells what was understood of each set.

    Of the files that are named one by one the headers are read, of those in sets no more than opening looks at.

    Args:
        size: below which pictures are small, for what is told.

    Raises:
        UserError: what is missing, empty, no picture, or cannot be told.
    """
    sources: list[ImageSource] = []
    for alone, group in groupby(specs, key=_is_picture):
        if not alone:
            sources += [open_source(spec, options=options) for spec in group]
            continue
        files = [os.path.expanduser(spec) for spec in group]
        source = _Files(files, ".", files[0] if len(files) == 1 else f"{len(files):,} files", Findings("picture files"))
        source.options = options
        if given := parse_range(options.range):
            source.ranges = Ranges(given=given)
        for index in range(len(source)):
            if problem := header(source, index).problem:
                raise UserError(problem)
        sources.append(source)
    for source in sources:
        if not isinstance(source, _Files):
            announce(source, size)
    return Several(sources, options)


def _is_picture(spec: str) -> bool:
    """Whether it is a file of one picture, whatever its extension."""
    return os.path.isfile(os.path.expanduser(spec)) and extension_of(spec) not in _NO_PICTURES


def _top(spec: str) -> str:
    """What a set is called in a path."""
    path = os.path.expanduser(spec)
    name = os.path.basename(os.path.abspath(path) if os.path.exists(path) else path.rstrip("/"))
    return re.sub(r"[^\w.-]+", "_", os.path.splitext(name)[0] if os.path.isfile(path) else name) or "set"


def distinct(names: Iterable[str]) -> Iterator[str]:
    """Names, numbered from the second one on where several are alike but for their case."""
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for name in names:
        found, key = name, name.casefold()
        while found.casefold() in taken:
            counts[key] = counts.get(key, 1) + 1
            found = f"{name}-{counts[key]}"
        taken.add(found.casefold())
        yield found
