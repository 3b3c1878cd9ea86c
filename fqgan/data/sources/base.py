"""What every form of image set is to its readers, and what was understood of one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.base.schema import read_text
from fqgan.config import SourceOptions
from fqgan.data.decode import decode_image
from fqgan.data.depth import Ranges

LISTED = 5
"""Names that a message shows of many."""


class Stored(NamedTuple):
    """A picture as its source stores it."""

    data: Path | bytes
    path: str
    """What the data set calls it; empty where it has no name."""


@dataclass
class Findings:
    """What was understood of a set of images, and what was left out of it."""

    form: str = ""
    split: str = ""
    """Which one is read; empty where the set has none."""
    split_rule: str = ""
    """What chose it, such as `folders train, val`."""
    pictures_from: str = ""
    """The column that holds them, where there are several."""
    labels_from: str = "nothing"
    ignored: Counter[str] = field(default_factory=Counter)
    """What was not read -> how often: an extension, or a word for the kind."""
    merged: int = 0
    """Samples whose members do not stand together, joined."""
    without_picture: int = 0
    """Samples that hold none."""
    captions_from: str = ""
    values: str = ""
    """Of deep pictures: what was found, and which values become black and white."""
    sides: list[int] = field(default_factory=list)
    """Shorter sides, in pixels, of the pictures that opening looked at."""
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Add a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)


class Found(NamedTuple):
    """What a spec turned out to name: files of one form, or a folder."""

    files: Sequence[str] = ()
    folder: Any = None
    """A `fqgan.data.sources.place.Folder`."""

    @property
    def suffix(self) -> str:
        """Of the first file, in lower case."""
        return os.path.splitext(self.files[0].partition("?")[0])[1].lower() if self.files else ""

    @property
    def head(self) -> bytes:
        """The first bytes of the first file, where it is on this machine."""
        if not self.files or not os.path.isfile(self.files[0]):
            return b""
        try:
            with open(self.files[0], "rb") as file:
                return file.read(512)
        except OSError as error:
            raise UserError(f"{self.files[0]} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Request:
    """How a user wants a set to be read."""

    spec: str
    """What the user named."""
    split: str = "train"
    options: SourceOptions = field(default_factory=SourceOptions)
    classes: tuple[str, ...] = ()
    """The order of class names that labels must follow; empty: the set's own."""


class ImageSource:
    """Pictures with labels, by index.

    A form of image set is a sub-class: it fills `findings`, `classes`, `labels` and `blocks`, and says what is stored
    at an index. No file stays open across a fork or a pickle.
    """

    name: str
    """For messages."""
    classes: tuple[str, ...] = ()
    """Class names; empty where they are unknown."""
    labels: npt.NDArray[np.int64]
    """The label of every picture; -1 where there is none."""
    blocks: list[int]
    """Lengths of the consecutive spans that are cheap to read together; a random-access source has one."""
    findings: Findings
    options: SourceOptions = SourceOptions()
    ranges: Ranges | None = None
    """Which values become black and white in deep pictures; None: each picture by itself."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The RGB picture at its own size, and its label. `UnreadableError` where it cannot be decoded."""
        found = self.stored(index)
        assert found is not None, "a source without stored pictures reads them itself"
        return decode_image(found.data, self.describe(index), self.ranges), int(self.labels[index])

    def stored(self, index: int) -> Stored | None:
        """A picture as it is stored; None where the source has no such thing, like the packaged photographs."""
        return None

    def describe(self, index: int) -> str:
        """The picture's file (and place in it), for messages."""
        raise NotImplementedError

    def names(self) -> Iterable[str]:
        """The files or parts of files that are read, in order and without the folder that holds the data set."""
        raise NotImplementedError

    def files(self) -> Iterable[Path]:
        """The files on disk that hold the pictures, in order; none of a source in memory or elsewhere."""
        return ()

    def captions(self) -> list[list[str]] | None:
        """The captions of every picture; None where the set has none."""
        return None

    def reserve(self, blocks: int) -> None:
        """Ask for memory enough that reads spread over `blocks` blocks stay cheap. Nothing to do for most sources."""

    def explain(self, size: int = 0) -> dict[str, Any]:
        """JSON-ready: all that was understood, and how many of the looked-at pictures are below `size` pixels."""
        names, counts = self.class_counts()
        return {
            **vars(self.findings),
            "ignored": dict(self.findings.ignored),
            "sides": {"looked_at": len(self.findings.sides), "below": sum(side < size for side in self.findings.sides)},
            "pictures": len(self),
            "classes": len(names),
            "unlabelled": int((self.labels < 0).sum()),
            "smallest_class": min(counts, default=0),
            "small": self.options.small,
        }

    def class_counts(self) -> tuple[list[str], list[int]]:
        """Name and pictures of every class; one without a name is called by its number."""
        labelled = self.labels[self.labels >= 0]
        top = int(labelled.max(initial=-1)) + 1
        if not self.classes and top > 2**24:  # numbers, but not of classes
            numbers, counts = np.unique(labelled, return_counts=True)
            return [str(number) for number in numbers], counts.tolist()
        counts = np.bincount(labelled, minlength=len(self.classes)).tolist()
        names = [*self.classes, *map(str, range(len(self.classes), top))]
        if not self.classes:
            pairs = [(name, count) for name, count in zip(names, counts, strict=True) if count]
            return [name for name, _ in pairs], [count for _, count in pairs]
        return names, counts

    def summary(self, size: int = 0) -> str:
        """What was understood, in one line."""
        found = self.findings
        parts = [found.form]
        if found.split:
            parts.append(f"split {found.split} (by {found.split_rule})" if found.split_rule else f"split {found.split}")
        count = f"{len(self):,} picture{'s' * (len(self) != 1)}"
        parts.append(f"{count} from {found.pictures_from}" if found.pictures_from else count)
        parts.append(self._labels_in_words())
        if found.captions_from:
            parts.append(f"captions from {found.captions_from}")
        if found.ignored:
            kinds = found.ignored.most_common()
            more = f" and {sum(n for _, n in kinds[8:]):,} others" if len(kinds) > 8 else ""
            parts.append("ignored " + ", ".join(f"{number:,} {kind}" for kind, number in kinds[:8]) + more)
        if found.merged:
            parts.append(f"{found.merged:,} samples joined from members that stand apart")
        if found.without_picture:
            parts.append(f"{found.without_picture:,} samples without a picture left out")
        if found.values:
            parts.append(found.values)
        below = sum(side < size for side in found.sides)
        if below:
            verb = {"enlarge": "enlarged", "skip": "skipped", "refuse": "refused"}[self.options.small]
            parts.append(f"{below} of {len(found.sides)} looked at are below {size} pixels: {verb}")
        return f"{self.name}: " + "; ".join(filter(None, parts))

    def _labels_in_words(self) -> str:
        names, counts = self.class_counts()
        if not names:
            return "no labels"
        least = int(np.argmin(counts))
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        smallest = f"; smallest {names[least]}: {counts[least]:,}" if len(names) > 1 else ""
        without = int((self.labels < 0).sum())
        rest = f", {without:,} pictures without a label" if without else ""
        return (
            f"{len(names):,} class{'es' * (len(names) > 1)} ({shown}{smallest}) from {self.findings.labels_from}{rest}"
        )


def announce(source: ImageSource, size: int = 0) -> None:
    """Print what was understood of a set, and its warnings."""
    say(source.summary(size))
    for warning in source.findings.warnings:
        say(f"warning: {source.name}: {warning}")


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def read_classes(file: str) -> tuple[str, ...]:
    """The class names of a file, one a line, in their order. `UserError` for none, and for one that stands twice."""
    if not file:
        return ()
    try:
        lines = read_text(Path(file).expanduser()).splitlines()
    except UserError as error:
        raise UserError(f"--classes {error}: name a text file with one class name a line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--classes {file} names {listed(twice)} twice")
    if not names:
        raise UserError(f"--classes {file} names no class")
    return names
