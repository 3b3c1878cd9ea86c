"""Pictures with captions: parquet in the Hugging Face layout, and the annotation files of Flickr30k and COCO."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.files import check_file, reading
from fqgan.base.schema import entry, load_json, parse_json
from fqgan.data.fingerprint import data_fingerprint, digest
from fqgan.data.sources import Findings, ImageSource, open_source
from fqgan.data.sources.folder import FileSource
from fqgan.data.sources.place import Folder, walk

COLUMNS = ("caption", "captions", "sentences", "text")
"""Where parquet files keep captions: texts, lists of texts, or lists of objects with a text `raw`."""
ANNOTATIONS = (".json", ".csv", ".token", ".txt")
_LONGEST = 2**30  # bytes of a file: COCO's with its splits has 145 MB
_LONGEST_LINE = 2**16
_TOKEN_LINE = re.compile(r"(?P<name>[^\t]+)#\d+\t(?P<caption>.*)")
# of Karpathy's splits: what they leave over of COCO's validation pictures is trained on
_SPLITS = {"restval": "train", "val": "validation"}
_Captions = dict[str, list[str]]


@dataclass(frozen=True)
class CaptionSet:
    """Pictures, each with one caption or several."""

    source: ImageSource
    captions: tuple[tuple[str, ...], ...]
    """In the source's order, without blanks at their ends; no picture is without."""

    def __len__(self) -> int:
        return len(self.captions)

    def data_fingerprint(self) -> dict[str, Any]:
        """JSON-ready numbers and digests of names and captions; the pictures themselves are not read."""
        captions = digest("\t".join(several) for several in self.captions)
        return {**data_fingerprint(self.source), "captions": captions}


def open_captions(spec: str, split: str = "train", images: str = "") -> CaptionSet:
    """Open captions with their pictures.

    - Parquet files, a folder of them, a glob or a range, as `open_source` knows them: pictures in the column `image`,
      captions in one of `COLUMNS`.
    - COCO's `captions_*.json`; Karpathy's `dataset_*.json`, which knows its splits.
    - Flickr's `*.token` (`picture.jpg#0`, a tab, the caption), `results.csv` (`picture.jpg| 0| caption`) and
      `captions.txt` (`picture.jpg,caption` below a heading), and the hub's `flickr_annotations_30k.csv`, which knows
      its splits.

    Args:
        split: `train`, `validation` or `test`, of what holds several.
        images: folder that holds an annotation file's pictures, at any depth; empty: the folder of that file.

    Raises:
        UserError: something is missing, empty or broken; captions whose pictures are not there; a picture without a
            caption.
    """
    path = Path(spec).expanduser()
    if path.suffix in ANNOTATIONS and not path.is_dir():
        return _annotated(path, split, Path(images).expanduser() if images else path.parent)
    source = open_source(spec, split)
    captions = source.captions()
    if captions is None:
        raise UserError(
            f"{spec} has no captions: name parquet files with the columns image and {COLUMNS[0]}, or an annotation "
            f"file ({' '.join(ANNOTATIONS)})"
        )
    return _checked(source, captions)


def knows_splits(spec: str) -> bool:
    """Whether one name stands for several splits: a folder, or an annotation file that says which a picture is of."""
    path = Path(spec).expanduser()
    if path.suffix not in ANNOTATIONS or path.is_dir():
        return path.is_dir()
    return any(split for split, _, _ in _entries(path))


def _checked(source: ImageSource, captions: list[list[str]]) -> CaptionSet:
    # a full stop alone says nothing, and no metric could use it
    kept = tuple(tuple(text for text in map(str.strip, several) if any(map(str.isalnum, text))) for several in captions)
    if empty := [i for i, several in enumerate(kept) if not several]:
        count = f" ({len(empty):,} such pictures)" if len(empty) > 1 else ""
        raise UserError(f"{source.describe(empty[0])} has no caption{count}: leave it out, or write one")
    return CaptionSet(source, kept)


def _annotated(path: Path, split: str, folder: Path) -> CaptionSet:
    found: _Captions = {}
    splits: set[str] = set()
    for own, name, captions in _entries(path):
        own = _SPLITS.get(own, own)
        splits.add(own)
        if own in ("", split):
            found.setdefault(name, []).extend(captions)
    if not found:
        known = f"; its splits: {', '.join(sorted(splits))}" if splits - {""} else ""
        raise UserError(
            f"{path} holds no captions of the split {split}{known}" if known else f"{path} holds no captions"
        )
    return _checked(*_pictured(path, found, folder))


def _pictured(path: Path, captions: _Captions, folder: Path) -> tuple[FileSource, list[list[str]]]:
    """The annotated pictures below a folder, found by their path or, where that is not there, by their name."""
    if not folder.is_dir():
        raise UserError(f"{folder}, which should hold the pictures of {path}, is no folder: name one with --images")
    directories = walk(Folder(str(folder)), Findings())
    files = [f"{folder}/{each.where}{name}" for each in directories for name in each.pictures]
    places = {Path(file).name: file for file in files} | {file.removeprefix(f"{folder}/"): file for file in files}
    absent = [name for name in captions if name not in places and Path(name).name not in places]
    if absent:
        count = f" ({len(absent):,} of {len(captions):,})" if len(absent) > 1 else ""
        raise UserError(
            f"{path} has captions of pictures that are not below {folder}, such as {absent[0]}{count}: name their "
            "folder with --images"
        )
    chosen = [places.get(name) or places[Path(name).name] for name in captions]
    findings = Findings("pictures with captions", captions_from=path.name)
    return FileSource(chosen, str(folder), str(path), findings), list(captions.values())


def _entries(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(split or "", picture, captions) of an annotation file; a picture may come several times."""
    if path.suffix == ".json":
        yield from _json_entries(path)
        return
    check_file(path, _LONGEST)  # a line may be as long
    with reading(path, "captions"), path.open(encoding="utf-8", newline="") as file:
        head = file.readline(_LONGEST_LINE)
        file.seek(0)
        if _TOKEN_LINE.match(head):
            yield from _token_entries(path, file)
        elif "|" in head:
            yield from _piped_entries(path, file)
        else:
            yield from _csv_entries(path, file)


def _json_entries(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    content = load_json(path, _LONGEST)
    if not isinstance(images := content.get("images"), list):
        raise UserError(
            f"{path} holds no captions in COCO's form (images with id and file_name, annotations with image_id and "
            "caption) or Karpathy's (images with filename and sentences)"
        )
    if "annotations" not in content:  # Karpathy's
        for number, image in enumerate(images):
            where = f"{path}: image {number}"
            name, folder = entry(image, "filename", str, where), entry(image, "filepath", str, where, default="")
            sentences = entry(image, "sentences", list, where)
            captions = [entry(sentence, "raw", str, f"{where}: sentences") for sentence in sentences]
            yield entry(image, "split", str, where, default=""), "/".join(filter(None, (folder, name))), captions
        return
    names: dict[object, str] = {}
    for number, image in enumerate(images):
        where = f"{path}: image {number}"
        known = entry(image, "id", object, where, lambda value: isinstance(value, int | str), "such as 7")
        names[known] = entry(image, "file_name", str, where)
    yield from (("", name, []) for name in names.values())
    for number, each in enumerate(entry(content, "annotations", list, path)):
        where = f"{path}: annotation {number}"
        known = entry(each, "image_id", object, where, lambda value: isinstance(value, int | str) and value in names)
        yield "", names[known], [entry(each, "caption", str, where)]


def _token_entries(path: Path, lines: Any) -> Iterator[tuple[str, str, list[str]]]:
    for number, line in enumerate(lines, 1):
        found = _TOKEN_LINE.match(line.rstrip("\r\n"))
        if not found and line.strip():
            raise UserError(f"line {number} of {path} is not a picture's name, # and a number, a tab and a caption")
        if found:
            yield "", found["name"], [found["caption"]]


def _piped_entries(path: Path, lines: Any) -> Iterator[tuple[str, str, list[str]]]:
    for number, line in enumerate(lines, 1):
        parts = [part.strip() for part in line.split("|", 2)]
        # the usual file lacks a bar in one line, between number and caption
        if len(parts) == 2 and (found := re.match(r"\d+\s+(.*)", parts[1])):
            parts = [parts[0], "", found[1]]
        if len(parts) != 3:
            raise UserError(f"line {number} of {path} is not a picture's name, a number and a caption between bars")
        if number > 1 or "." in parts[0]:
            yield "", parts[0], [parts[2]]


def _csv_entries(path: Path, lines: Any) -> Iterator[tuple[str, str, list[str]]]:
    rows = csv.DictReader(lines)
    columns = set(rows.fieldnames or ())
    if {"filename", "raw"} <= columns:
        for row in rows:
            captions = None
            with suppress(UserError):
                captions = parse_json(row["raw"] or "", path)
            if not row["filename"] or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
                raise UserError(f"{path}: the captions of {row['filename']} are no JSON list of texts")
            yield row.get("split") or "", row["filename"], captions
    elif {"image", "caption"} <= columns:
        for row in rows:
            yield "", row["image"] or "", [row["caption"] or ""]
    else:
        raise UserError(f"{path} holds no captions: its heading should name image and caption, or filename and raw")
