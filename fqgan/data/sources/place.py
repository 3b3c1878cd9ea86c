"""Folders on disk or in an archive: what lies in them, which split they hold, which class a sub-folder stands for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar

from fqgan.base.errors import UserError
from fqgan.data.formats import EXTENSIONS, NEEDS
from fqgan.data.sources.base import Findings, Request, listed
from fqgan.data.sources.labels import follow, ordered

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a file or folder is called -> the split it holds."""
FOLDER_NAMES = "folder names"
KINDS = {**dict.fromkeys((e[1:] for e in EXTENSIONS), "picture"), **{k: k for k in ("parquet", "tar", "zip", "arrow")}}
"""Extension -> what a file holds."""
# left by systems and programs, beside names that begin with a dot
_SYSTEM = re.compile(
    r"\..*|@eadir|#recycle|__macosx|\$recycle\.bin|system volume information|lost\+found|__pycache__|"
    r"thumb(nail)?s([-_ ]?\d+(x\d+)?)?|\.thumb",
    re.IGNORECASE,
)
_CONTAINER = re.compile(r"(jpeg)?(images?|imgs?|pictures?|pics?|photos?|files?|data|samples?)", re.IGNORECASE)
T = TypeVar("T")


class Place(Protocol):
    """A folder, on disk or in an archive. What systems leave behind is not among its entries, but counted."""

    name: str

    @property
    def key(self) -> object:
        """The same for two ways to one folder."""
        ...

    @property
    def folders(self) -> Sequence[Place]:
        """Sorted by name."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """Names, sorted."""
        ...

    @property
    def odd(self) -> Counter[str]:
        """Entries left out: hidden and system files and folders, pipes and the like."""
        ...


class Folder:
    """A folder on disk; links are followed."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, os.path.basename(path)

    @property
    def key(self) -> object:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        return status.st_dev, status.st_ino

    @property
    def folders(self) -> list[Folder]:
        return self._entries[0]

    @property
    def files(self) -> list[str]:
        return self._entries[1]

    @property
    def odd(self) -> Counter[str]:
        return self._entries[2]

    @cached_property
    def _entries(self) -> tuple[list[Folder], list[str], Counter[str]]:
        folders, files, odd = [], [], Counter[str]()
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    name = entry.name
                    try:
                        is_folder = entry.is_dir()
                    except OSError:  # a link to itself
                        odd["broken links"] += 1
                        continue
                    if is_folder:
                        folders.append(name) if not is_system(name) else odd.update([f"folder {name}"])
                    elif not entry.is_file():
                        odd["broken links" if entry.is_symlink() else "pipes and devices"] += 1
                    elif name[0] == ".":
                        odd["hidden files"] += 1
                    else:
                        files.append(name)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from None
        return [Folder(f"{self.path.rstrip('/')}/{name}") for name in sorted(folders)], sorted(files), odd


class Directory(NamedTuple):
    """The pictures of one folder below a place."""

    where: str
    """Path below the place, "" for the place itself, else with a slash at its end."""
    pictures: list[str]


def is_system(name: str) -> bool:
    """Whether a folder is left by a system or a program, or holds thumbnails."""
    return bool(_SYSTEM.fullmatch(name))


def extension_of(name: str) -> str:
    """Lower case, without the dot; empty where there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def walk(place: Place, findings: Findings) -> Iterator[Directory]:
    """The pictures at any depth, folder by folder: its own files first, all sorted by name. Everything else is counted
    among the findings. A folder to which several links lead is read once."""
    seen: set[object] = set()
    waiting = [(place, "")]
    while waiting:
        here, where = waiting.pop()
        if (key := here.key) in seen:
            findings.ignored["links to folders read already"] += 1
            continue
        seen.add(key)
        findings.ignored.update(here.odd)
        pictures = [name for name in here.files if KINDS.get(extension_of(name)) == "picture"]
        if len(pictures) < len(here.files):
            count_ignored(set(here.files).difference(pictures), findings)
        yield Directory(where, pictures)
        waiting += [(child, f"{where}{child.name}/") for child in reversed(here.folders)]


def count_ignored(names: Iterable[str], findings: Findings) -> None:
    """Count files that are not read by their extensions; pictures of formats that need a package are a warning."""
    kinds = Counter(extension_of(name) for name in names)
    findings.ignored.update({f".{kind}" if kind else "files without extension": n for kind, n in kinds.items()})
    for kind, number in kinds.items():
        if need := NEEDS.get(f".{kind}"):
            findings.warn(f"{number:,} .{kind} pictures cannot be read: {need}")


def kind_below(place: Place) -> str:
    """What the first data file at or below a place holds: "picture", "parquet" and so on; "" where there is none."""
    seen: set[object] = set()
    waiting = [place]
    while waiting:
        here = waiting.pop()
        if here.key in seen:
            continue
        seen.add(here.key)
        kinds = Counter(KINDS.get(extension_of(name), "") for name in here.files)
        for kind in ("parquet", "arrow", "tar", "picture", "zip"):
            if kinds[kind]:
                return kind
        waiting += reversed(here.folders)
    return ""


def choose_split(names: dict[T, str], request: Request, findings: Findings, what: str) -> list[T]:
    """Of things that hold one split each (thing -> what it is called by), those of the split that is asked for.

    `test` serves as validation where nothing else does; a set of one split serves for all. `UserError` where the split
    is missing.
    """
    split_by = {thing: word_of(name) for thing, name in names.items()}
    there = set(split_by.values())
    wanted = (
        "test" if request.split == "validation" and "validation" not in there and "test" in there else request.split
    )
    if wanted not in there:
        if len(there) > 1:
            raise UserError(
                f"{request.spec} holds {listed(sorted(names.values()))} but no {request.split} split: name a file"
            )
        wanted = there.pop()
        findings.warn(f"it holds the split {wanted} only, which is read as {request.split}")
    findings.split = wanted
    findings.split_rule = f"{what} {listed(sorted(set(names.values())))}"
    return [thing for thing, word in split_by.items() if word == wanted]


def split_named(name: str) -> str:
    """The split that a folder is named after, as `train`, `val2017` or `test_images`, or ""."""
    return SPLITS.get(re.sub(r"([-_ ]?(images?|imgs?|pictures|photos|data|set))?([-_ ]?\d+)?$", "", name.lower()), "")


def word_of(name: str) -> str:
    """The split that a file's or folder's name tells, or ""."""
    return next((SPLITS[word] for word in re.split("[^a-z]", name.lower()) if word in SPLITS), "")


def of_split(paths: list[str], request: Request, findings: Findings, base: str = "") -> list[str]:
    """The files of one split where the words in their names, or in those of their folders below `base`, tell of
    several; else all of them. `UserError` where some tell and others do not."""
    word_at = {
        path: next(filter(None, map(word_of, reversed(path.removeprefix(base).split("/")))), "") for path in paths
    }
    words = set(word_at.values())
    if len(words) < 2:
        return paths
    if "" in words and len(words) > 2:
        nameless = next(path for path, word in word_at.items() if not word)
        raise UserError(
            f"{request.spec} holds files of several splits and others of none, such as {os.path.basename(nameless)}: "
            "name the files of one split"
        )
    if "" in words:  # one word only: parts of a set whose names happen to hold it
        findings.warn(f"some file names say {(words - {''}).pop()}, others no split: all of them are read")
        return paths
    chosen = choose_split(
        {path: path.removeprefix(base).lstrip("/") for path in paths}, request, findings, "file names"
    )
    findings.split_rule = "file names"
    findings.warn(
        f"the files' names decide the split: {len(chosen)} of {len(paths)} files are read as {findings.split}"
    )
    return chosen


def settle(place: Place, request: Request, findings: Findings) -> tuple[Place, tuple[str, ...]]:
    """Where the pictures of the split begin (`step`), and the class names that its labels follow."""
    known = request.classes
    while (following := step(place, request, findings)) is not None:
        place, names = following
        known = known or names
    return place, known


def step(place: Place, request: Request, findings: Findings) -> tuple[Place, tuple[str, ...]] | None:
    """The sub-folder to go on with, and the class names of the training split beside it; None where the set begins.

    Sub-folders named after splits are splits where they cover all that holds data; a single sub-folder in which
    nothing but folders lie is passed through.
    """
    children = {child: kind for child in place.folders if (kind := kind_below(child))} if _may_settle(place) else {}
    own = Counter(KINDS.get(extension_of(name), "") for name in place.files)
    named = {child: child.name for child in children if split_named(child.name)}
    if named and len(named) == len(children):
        chosen = choose_split(named, request, findings, "folders")
        if len(chosen) > 1:
            raise UserError(f"{request.spec} holds several such splits ({listed([c.name for c in chosen])}): name one")
        if own["picture"]:
            findings.warn(f"{own['picture']:,} pictures beside the folders of splits are not read")
        count_ignored(place.files, findings)
        train = next((child for child in named if split_named(child.name) == "train"), chosen[0])
        return chosen[0], tuple(class_folders(train)) if train is not chosen[0] else ()
    if len(children) == 1 and not any(own[kind] for kind in ("picture", "parquet", "arrow", "tar")):
        (child,) = children
        if child.folders and not any(KINDS.get(extension_of(name)) for name in child.files):
            count_ignored(place.files, findings)
            return child, ()
    return None


def _may_settle(place: Place) -> bool:
    """Whether looking below is worth it: not for a thousand class folders."""
    folders = place.folders
    return len(folders) < 32 or any(split_named(folder.name) for folder in folders)


def class_folders(place: Place) -> list[str]:
    """Names of the sub-folders that stand for classes, in the order of labels: those that hold pictures, and empty
    ones, so that the labels of several splits agree."""
    names = [child.name for child in place.folders if not (child.files or child.folders) or kind_below(child)]
    return ordered(names, Findings()) or []


def labels_of(
    place: Place, directories: list[Directory], known: tuple[str, ...], request: Request, findings: Findings
) -> tuple[list[int], tuple[str, ...]]:
    """The label of each directory's pictures, and the class names: a sub-folder is a class, whatever lies below it.

    There are none where pictures lie in the place itself, in one folder called `images` or the like, or in folders that
    are named like shards; the findings say what was decided.
    """
    insist = request.options.labels == "folders"
    counts: Counter[str] = Counter()
    for directory in directories:
        counts[directory.where.partition("/")[0]] += len(directory.pictures)
    above = counts.pop("", 0)
    filled = [name for name in counts if counts[name]]
    flat = [-1] * len(directories)
    if request.options.labels == "none" or not filled:
        return flat, ()
    if above > sum(counts.values()) and not insist:
        findings.warn(f"most pictures lie above the folders {listed(filled)}, so these are taken for no classes")
        return flat, ()
    if len(filled) == 1 and not insist and _CONTAINER.fullmatch(filled[0]):
        return flat, ()
    empty = [child.name for child in place.folders if not (counts[child.name] or child.files or child.folders)]
    names = ordered([*filled, *empty], findings, insist)
    if names is None:
        return flat, ()
    if like := [name for name in names if word_of(name)]:
        findings.warn(f"the class folders {listed(like)} are named like splits, but others beside them are not")
    if above:
        findings.warn(f"{above:,} of the pictures lie above the class folders: they have no label")
    numbers, classes = follow(names, known, findings)
    label_of = dict(zip(names, numbers, strict=True))
    findings.labels_from = FOLDER_NAMES
    return [label_of.get(directory.where.partition("/")[0], -1) for directory in directories], classes
