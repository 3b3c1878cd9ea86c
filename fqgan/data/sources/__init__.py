"""Image sources: where pictures come from, and how what a user names is understood.

A form of image set is a file in this folder with `claims(found)`, whether files or a folder are of its kind, and
`open_found(found, request, findings)`; `FORMS` lists them.
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fqgan.base.errors import UnreadableError, UserError
from fqgan.base.files import is_name, is_path
from fqgan.base.schema import did_you_mean, entry, load_json
from fqgan.config import DataConfig, SourceOptions
from fqgan.data import remote
from fqgan.data.decode import set_ranges
from fqgan.data.depth import Ranges, parse_range
from fqgan.data.headers import stored_header
from fqgan.data.order import spread_over_blocks
from fqgan.data.sources import archive, cifar, folder, npz, parquet, photos, tar
from fqgan.data.sources.base import Findings, Found, ImageSource, Request, Stored, announce, listed, read_classes
from fqgan.data.sources.place import (
    FOLDER_NAMES,
    KINDS,
    Folder,
    choose_split,
    count_ignored,
    extension_of,
    kind_below,
    of_split,
    step,
    word_of,
)
from fqgan.models import hub

__all__ = [
    "FORMS",
    "Findings",
    "ImageSource",
    "Request",
    "Stored",
    "announce",
    "default_validation",
    "open_data",
    "open_source",
]

FORMS = (parquet, tar, archive, npz, folder)
"""In the order in which they are asked."""
BY_NAME = (photos.NAME, *cifar.NAMES)
"""Sets that need no path, and know their splits."""
LOOKED_AT = 64
"""Pictures whose headers opening looks at, from few blocks: sizes, and values deeper than 8 bit."""
_PACKED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|gz|bz2|xz|zst|7z|rar)$", re.IGNORECASE)
_MOST_FILES = 10**6


def open_source(
    spec: str,
    split: str = "train",
    options: SourceOptions | None = None,
    classes: tuple[str, ...] = (),
    ranges: Ranges | None = None,
) -> ImageSource:
    """Open a set of images: `photos`, `cifar10`, `cifar100`; an image folder; a list (.csv .tsv .jsonl .txt); parquet,
    Arrow, tar, .zip or .npz files: one file, a folder of them, a glob, or a range such as `train-{0000..0099}.tar`;
    parquet files and tars also at s3://, gs:// and https://; `hf:datasets/org/name[@revision][:config]`.

    Args:
        split: "train" or "validation". It picks regions of the photographs, CIFAR's training or test pictures, and one
            of several splits that lie side by side (`train/` and `val/`, or `train-0.tar` and `test-0.tar`; `test`
            serves as validation where nothing else does). Otherwise it has no meaning.
        classes: names whose order the labels follow, such as a training set's; `options.classes` comes first.
        ranges: of deep pictures, such as a training set's; `options.range` comes first.

    Raises:
        UserError: what is missing, empty, broken, or cannot be told.
    """
    options = options or SourceOptions()
    if not spec:
        raise UserError("no image source is set: name photos, cifar10, an image folder, parquet files or tars")
    if not is_path(spec):
        raise UserError(f"{spec[:100]!r} is no name of a file")
    given = parse_range(options.range)
    request = Request(spec, split, options, read_classes(options.classes) or classes)
    try:
        source = _named(request) or _found(request)
        if names := _training_classes(source, request):
            source = _found(replace(request, classes=names))
    except RecursionError:
        raise UserError(f"{spec}: its folders are nested too deeply") from None
    source.options = options
    source.ranges = Ranges(given=given) if given else ranges
    _look(source)
    return source


def _training_classes(source: ImageSource, request: Request) -> tuple[str, ...]:
    """The class names of the training split that lies beside the one that was opened, where its numbers are others'."""
    found = source.findings
    chosen = request.spec not in BY_NAME and found.split in ("validation", "test") and request.split == "validation"
    if not chosen or request.classes or not source.classes or found.labels_from == FOLDER_NAMES:
        return ()
    train = _found(replace(request, split="train"))
    return train.classes if train.findings.split == "train" and train.classes != source.classes else ()


def open_data(config: DataConfig) -> tuple[ImageSource, ImageSource | None]:
    """The images that a run trains on and those that validate it, if any, whose labels follow the same class names."""
    source = open_source(config.source, "train", SourceOptions.of(config))
    spec = config.validation or default_validation(config.source)
    if not spec:
        return source, None
    validation = open_source(spec, "validation", SourceOptions.of(config), source.classes, source.ranges)
    if not source.classes and validation.classes and source.labels.max(initial=-1) >= 0:
        validation.findings.warn("it names its classes, and the training pictures have numbers: they may not agree")
    if source.classes and not validation.classes and validation.findings.labels_from == "nothing":
        validation.findings.warn("it has no labels, where the training pictures have some")
    return source, validation


def default_validation(spec: str) -> str:
    """What validates a source where nothing else is named: itself, if it knows its splits; else nothing."""
    return spec if spec in BY_NAME else ""


def _named(request: Request) -> ImageSource | None:
    if request.spec == photos.NAME:
        return photos.PhotoSource(request.split)
    return cifar.CifarSource(request.spec, request.split) if request.spec in cifar.NAMES else None


def _found(request: Request) -> ImageSource:
    findings = Findings()
    found = find(request, findings)
    if found.suffix and _PACKED.search(found.files[0]):
        raise _packed(found.files[0])
    for form in FORMS:
        if form.claims(found):
            return form.open_found(found, request, findings)
    raise UserError(
        f"{found.files[0]} is neither a folder nor a .parquet or .tar file, "
        "nor a list of pictures, a picture, a .zip or an .npz"
    )


def find(request: Request, findings: Findings) -> Found:
    """What a spec names. `UserError` where it is not there."""
    spec = request.spec
    if spec.startswith(hub.DATASETS):
        return route(Folder(str(hub.fetch_dataset(spec))), request, findings)
    if remote.is_remote(spec):
        return _elsewhere(request, findings)
    if re.match(r"[a-z0-9]+://|hf:|pipe:", spec):
        raise UserError(f"{spec} is not on this machine: copy it here (aws s3 cp, curl, hf download) and name the copy")
    path = os.path.expanduser(spec).rstrip("/") or "/"
    if os.path.isdir(path):
        return route(Folder(path), request, findings)
    files = [*_matches(path, spec)]
    if not files:
        raise UserError(f"{spec} fits folders only: name one, or the files in them")
    if "{" not in path and len(files) > 1:
        base = re.split(r"[*?\[]", path)[0]
        files = of_split(files, request, findings, os.path.dirname(base))
    kinds = {KINDS.get(extension_of(file), "") for file in files}
    if len(kinds - {"picture", ""}) > 1:
        raise UserError(
            f"{spec} holds {' and '.join(f'.{kind}' for kind in sorted(kinds) if kind)} files: name those of one kind"
        )
    return Found(tuple(files))


def _elsewhere(request: Request, findings: Findings) -> Found:
    """The files that an address, a folder, a pattern or a range of them names; parquet files and tars only."""
    spec = request.spec
    names = [name for each in _expand(spec) for name in remote.expand(each)]
    if "{" not in spec:
        names = of_split(names, request, findings, spec.partition("*")[0].rpartition("/")[0])
    found = Found(names)
    if found.suffix not in (".parquet", ".tar"):
        raise UserError(
            f"{spec}: parquet files and tars are read from elsewhere, nothing else: copy it and name the copy"
        )
    return found


def route(place: Folder, request: Request, findings: Findings) -> Found:
    """The files or the folder that hold a folder's set: saved data sets, parquet files or tars of the split, else its
    pictures. What was unpacked goes before archives that lie beside it."""
    if (saved := _saved(place, request, findings)) is not None:
        return saved
    following = step(place, request, findings)
    if following is not None and kind_below(following[0]) != "picture":
        assert isinstance(following[0], Folder), "a folder on disk holds folders on disk"
        return route(following[0], request, findings)
    if following is not None:
        _forget(findings)
        return Found(folder=place)
    own = Counter(KINDS.get(extension_of(name), "") for name in place.files)
    below = {child: kind_below(child) for child in place.folders} if len(place.folders) < 32 else {}
    unpacked = "picture" in below.values() or len(place.folders) >= 32

    def files(kind: str) -> Found:
        names = [f"{place.path}/{name}" for name in place.files if extension_of(name) == kind]
        count_ignored((name for name in place.files if extension_of(name) != kind), findings)
        if deeper := [child.name for child, found in below.items() if found]:
            findings.warn(f"the folders {listed(deeper)} beside the .{kind} files hold data, too, and are not read")
        return Found(tuple(of_split(names, request, findings, place.path)))

    if own["parquet"]:
        first = next(name for name in place.files if extension_of(name) == "parquet")
        if not (own["picture"] or own["tar"] or own["zip"] or unpacked) or parquet.has_pictures(
            f"{place.path}/{first}"
        ):
            return files("parquet")
    if own["tar"] and not unpacked and own["tar"] >= own["picture"]:
        return files("tar")
    if own["zip"] and not unpacked and not own["picture"]:
        return files("zip")
    tables = [child for child, kind in below.items() if kind not in ("", "picture")]
    hub_like = any(name in place.files for name in ("README.md", "dataset_infos.json"))
    if tables and not own["picture"] and (hub_like or not unpacked):
        if len(tables) > 1:
            names = listed([child.name for child in tables])
            raise UserError(
                f"{request.spec} holds several sets ({names}): name one, such as {request.spec}/{tables[0].name}"
            )
        count_ignored(place.files, findings)
        return route(tables[0], request, findings)
    if not own["picture"] and not unpacked and (packed := [name for name in place.files if _PACKED.search(name)]):
        raise _packed(f"{place.path}/{packed[0]}")
    if archives := [name for name in place.files if extension_of(name) in ("tar", "zip")]:
        findings.warn(f"{listed(archives)} beside the pictures are not read")
    return Found(folder=place)


def _saved(place: Folder, request: Request, findings: Findings) -> Found | None:
    """The files of `datasets.save_to_disk`, of one split where there are several; None for other folders."""
    if "dataset_dict.json" in place.files:
        names = {child: child.name for child in place.folders if child.files}
        if not names:
            raise UserError(f"{place.path} has a dataset_dict.json, but none of its splits")
        if unknown := [name for name in names.values() if not word_of(name)]:
            raise UserError(
                f"{request.spec} holds the splits {listed(sorted(names.values()))}: name one, {place.path}/{unknown[0]}"
            )
        chosen = choose_split(names, request, findings, "folders")
        if len(chosen) > 1:
            raise UserError(f"{request.spec} holds several such splits ({listed([c.name for c in chosen])}): name one")
        return _saved(chosen[0], request, findings)
    arrows = [name for name in place.files if extension_of(name) == "arrow" and not name.startswith("cache-")]
    known = {"state.json", "dataset_info.json"} & set(place.files)
    if not arrows or (not known and kind_below(place) == "picture"):
        return None
    listed_files: list[str] = []
    with suppress(UserError):  # missing or odd: the files tell
        rows = entry(load_json(Path(place.path, "state.json")), "_data_files", list, place.path)
        listed_files = [entry(row, "filename", str, place.path, is_name) for row in rows]
    if listed_files:
        return Found([f"{place.path}/{name}" for name in listed_files])
    return Found(of_split([f"{place.path}/{name}" for name in arrows], request, findings, place.path))


def _forget(findings: Findings) -> None:
    """Drop what was found: opening the pictures takes the same steps again."""
    findings.ignored.clear()
    findings.warnings.clear()


def _packed(file: str) -> UserError:
    folder_name = _PACKED.sub("", os.path.basename(file))
    how = f"mkdir {folder_name} && tar xf {file} -C {folder_name}"
    if re.search(r"\.(7z|rar)$", file, re.IGNORECASE):
        how = f"7z x {file} -o{folder_name}"
    return UserError(
        f"{file} is compressed as a whole and cannot be read at random: unpack it ({how}) and name {folder_name}"
    )


def _matches(path: str, spec: str) -> Iterator[str]:
    """The files that a path, a glob or a range of numbers names. `UserError` where one of them is missing."""
    for name in [path] if os.path.exists(path) else _expand(path):
        found = [name] if os.path.exists(name) else sorted(glob.iglob(name, recursive=True))
        if not found:
            raise _missing(spec if name == path else name, Path(name))
        for each in found:
            if os.path.isfile(each):
                yield each
            elif name == each or not os.path.isdir(each):
                raise UserError(f"{each} is neither a folder nor a file: a pipe, a socket or a device")


def _expand(name: str) -> list[str]:
    """`a-{08..10}` -> `a-08`, `a-09`, `a-10`, and so for several ranges."""
    if re.search(r"\{(\d+\.\.)?\d{100}", name) or name.count("{") > 30:  # Python converts no thousands of digits
        raise UserError(f"{name[:100]} names more than {_MOST_FILES:,} files")
    ranges = [(int(first), int(last), len(first)) for first, last in re.findall(r"\{(\d+)\.\.(\d+)\}", name)]
    total = math.prod(max(0, last - first + 1) for first, last, _ in ranges)
    if ranges and not 0 < total <= _MOST_FILES:
        raise UserError(
            f"{name} names {total:,} files: a range such as {{0000..0099}} rises, to {_MOST_FILES:,} at most"
        )
    words = re.split(r"\{\d+\.\.\d+\}", name)
    spans = [[f"{number:0{width}}" for number in range(first, last + 1)] for first, last, width in ranges]
    return ["".join(itertools.chain(*zip(words, (*each, ""), strict=True))) for each in itertools.product(*spans)]


def _missing(spec: str, path: Path) -> UserError:
    siblings = [entry.name for entry in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    return UserError(f"{spec} does not exist{did_you_mean(path.name, [*BY_NAME, *siblings])}")


def _look(source: ImageSource) -> None:
    """Look at a sample of the stored pictures: their sizes, and the values of deep ones, from which the range follows
    where the user named none. `UserError` where it cannot be told."""
    stored = []
    for index in spread_over_blocks(source.blocks, LOOKED_AT, most_blocks=2):
        with suppress(UnreadableError):
            stored.append(source.stored(index))
    headers = [found for item in stored if (found := stored_header(item))]
    source.findings.sides = [min(found.width, found.height) for found in headers]
    if source.ranges is not None:
        words = " to ".join(source.options.range) if source.ranges.given else "training's"
        source.findings.values = f"deep pictures by the range {words}"
        return
    looked = set_ranges([item.data for item in stored if item is not None])
    if looked.problem and looked.deep:
        raise UserError(f"{source.name}: {looked.problem}")
    if looked.deep:
        source.ranges, source.findings.values = looked.ranges, looked.describe()
        if looked.mixed:
            source.findings.warn(looked.mixed)
