"""Lists of pictures: .csv .tsv .jsonl .txt, StyleGAN's dataset.json, and the metadata files inside folders."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.files import check_file, is_path, reading
from fqgan.base.schema import parse_json
from fqgan.data.sources.base import Findings, Request, listed
from fqgan.data.sources.labels import columns_by_name
from fqgan.data.sources.place import SPLITS, choose_split

FORM = "list of pictures"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
METADATA = ("metadata.csv", "metadata.jsonl", "dataset.json", "val_annotations.txt")
"""Files inside a folder or an archive that give its pictures labels: of the Hugging Face imagefolder, of StyleGAN, and
of Tiny ImageNet."""
PATH_COLUMNS = (
    *("file_name", "filename", "file", "path", "filepath", "file_path"),
    *("image", "img", "image_path", "imageid"),
)
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "class_name", "cls", "class_label", "category", "target")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentences", "description", "prompt")
_SPLIT_COLUMNS = ("split", "subset", "partition")
_WHOLE = re.compile(r"[+-]?[0-9]{1,15}(\.0+)?")
_MISSING = ("", "nan", "null", "none", "n/a", "<na>")  # as tables write a value that is not there
_LONGEST = 2**31  # bytes of a list
_KAGGLE = "LOC_val_solution.csv"


@dataclass
class Rows:
    """What a list holds, row by row."""

    paths: list[str]
    labels: list[Any] | None = None
    captions: list[Any] | None = None
    splits: list[str] | None = None
    label_column: str = ""
    caption_column: str = ""
    ignored: list[str] = field(default_factory=list)
    """Columns that mean nothing here."""

    def take(self, rows: Sequence[int]) -> Rows:
        """Some of them."""

        def of(column: list[Any] | None) -> list[Any] | None:
            return None if column is None else [column[i] for i in rows]

        paths = [self.paths[i] for i in rows]
        return Rows(
            paths, of(self.labels), of(self.captions), None, self.label_column, self.caption_column, self.ignored
        )


def read_list(path: Path, request: Request, data: bytes | None = None) -> Rows:
    """The rows of a list, from its content `data` or from the disk; `UserError` that names the file where it
    is none."""
    data = read_bytes(path) if data is None else data
    with reading(path, "a list of pictures"):
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{path} is no text in UTF-8") from None
        if not text.strip():
            raise UserError(f"{path} names no picture: it is empty")
        readers = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".json": _stylegan}
        reader = readers.get(path.suffix.lower(), _lines)
        rows = reader(text, path, request)
    if strange := next((name for name in rows.paths if not is_path(name)), ""):
        raise UserError(f"{path} names {strange[:100]!r}, which is no name of a file")
    if not rows.paths and path.name != "dataset.json":
        raise UserError(f"{path} names no picture")
    return rows


def read_bytes(path: Path) -> bytes:
    """The content of a list; `UserError` for what cannot be one."""
    if check_file(path) > _LONGEST:
        raise UserError(f"{path} is larger than {_LONGEST >> 30} GiB: no list of pictures")
    with reading(path, "a list of pictures"):
        return path.read_bytes()


def of_split(rows: Rows, request: Request, findings: Findings) -> Rows:
    """The rows of one split, where a column tells of several."""
    if rows.splits is None:
        return rows
    unknown = sorted({word for word in rows.splits if word.lower() not in SPLITS})
    if unknown:
        raise UserError(f"{request.spec}: the split column holds {listed(unknown)}: use train, validation and test")
    words = {word: word for word in rows.splits}
    chosen = set(choose_split(words, request, findings, "split column"))
    return rows.take([i for i, word in enumerate(rows.splits) if word in chosen])


def metadata_of(
    names: Sequence[str], read: Callable[[str], bytes], request: Request, findings: Findings
) -> tuple[str, Rows] | None:
    """What the metadata file among a folder's file names says of its pictures; None where there is none. One of
    another kind gives None and a warning. `read` gives a file's content."""
    for name in METADATA:
        if name not in names:
            continue
        try:
            return name, read_list(Path(name), request, read(name))
        except UserError as error:
            findings.warn(f"{error}: it is not used")
    return None


def kaggle_labels(folder: str, request: Request) -> Rows | None:
    """Labels of the flat validation pictures of Kaggle's ImageNet, whose table lies up to four folders above."""
    place = Path(folder).absolute()
    for above in (place, *place.parents[:4]):
        if (above / _KAGGLE).is_file():
            rows = read_list(above / _KAGGLE, request)
            return Rows([f"{path}.JPEG" for path in rows.paths], rows.labels, label_column=_KAGGLE)
    return None


def resolve(rows: Rows, list_path: Path) -> list[str]:
    """The pictures' paths: absolute, relative to the list's folder, or relative to the working directory. `UserError`
    where one is missing."""
    base = str(list_path.parent)
    found, absent = [], []
    for name in rows.paths:
        path = os.path.join(base, os.path.expanduser(name))
        if not os.path.isfile(path):
            path = name if os.path.isfile(name) else ""
        found.append(path) if path else absent.append(name)
    if absent:
        count = f" ({len(absent):,} of {len(rows.paths):,})" if len(absent) > 1 else ""
        raise UserError(
            f"{list_path} names pictures that are not there, such as {absent[0]}{count}: paths are absolute, or "
            f"relative to {base or '.'}"
        )
    return found


def _table(text: str, path: Path, request: Request) -> Rows:
    head = text.lstrip().split("\n", 1)[0]
    separator = "\t" if path.suffix.lower() == ".tsv" or ("\t" in head and "," not in head) else ","
    if separator == "," and ";" in head and "," not in head:
        separator = ";"
    # strict: a quote that is never closed would swallow the rows behind it
    reader = csv.DictReader(
        io.StringIO(text.lstrip(), newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    header = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    rows = list(reader)
    if broken := next((i for i, row in enumerate(rows, 2) if None in row or None in row.values()), 0):
        raise UserError(f"line {broken} of {path} has more or fewer fields than its heading ({len(header)})")
    return _columns(header, {name: [row[name] for row in rows] for name in header}, path, request)


def _json_lines(text: str, path: Path, request: Request) -> Rows:
    lines = enumerate(text.split("\n"), 1)
    rows = [parse_json(line, f"{path}: line {number}") for number, line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} does not hold one JSON object a line")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _columns(names, {name: [row.get(name) for row in rows] for name in names}, path, request)


def _columns(names: list[str], columns: dict[str, list[Any]], path: Path, request: Request) -> Rows:
    options = request.options
    found = {
        "path": [options.image_column] if options.image_column else columns_by_name(names, PATH_COLUMNS),
        "label": [options.label_column] if options.label_column else columns_by_name(names, LABEL_COLUMNS),
        "caption": columns_by_name(names, CAPTION_COLUMNS),
        "split": columns_by_name(names, _SPLIT_COLUMNS),
    }
    if path.name == _KAGGLE:
        found["label"] = ["PredictionString"]
    for kind in ("path", "label"):
        if found[kind] and found[kind][0] not in columns:
            raise UserError(f"{path} has no column {found[kind][0]}; its columns: {listed(names)}")
    if not found["path"]:
        raise UserError(
            f"{path} has no column with the pictures' paths (such as {listed(PATH_COLUMNS[:4])}); its columns: "
            f"{listed(names)}: name it with --data.image-column"
        )
    first = {kind: each[0] for kind, each in found.items() if each}
    paths = columns[first["path"]]
    if empty := next((i for i, each in enumerate(paths, 1) if not isinstance(each, str) or not each), 0):
        raise UserError(f"row {empty} of {path} has no path")
    labels = columns[first["label"]] if "label" in first else None
    if labels is not None and path.name == _KAGGLE:
        labels = [(str(label).split() or [None])[0] for label in labels]
    elif labels is not None and path.suffix.lower() != ".jsonl":
        labels = numbers_where_all(labels)
    return Rows(
        paths,
        labels,
        columns[first["caption"]] if "caption" in first else None,
        [str(word) for word in columns[first["split"]]] if "split" in first else None,
        first.get("label", ""),
        first.get("caption", ""),
        [name for name in names if name not in first.values()],
    )


def numbers_where_all(words: Sequence[Any]) -> list[Any]:
    """Words as whole numbers where all of them (but the empty ones) are some: tables hold text only."""
    filled = [None if not word or word.strip().lower() in _MISSING else word.strip() for word in words]
    if all(word is None or _WHOLE.fullmatch(word) for word in filled):
        return [None if word is None else int(float(word)) for word in filled]
    return filled


def _lines(text: str, path: Path, request: Request) -> Rows:
    """One path a line; a label may follow it, after a tab or as the last word."""
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if any("\t" in line for line in lines):
        cells = [(*line.split("\t"), "") for line in lines]
    elif all(" " in line for line in lines) and not ((path.parent / lines[0]).exists() or Path(lines[0]).exists()):
        cells = [line.rsplit(None, 1) for line in lines]
    else:
        return Rows([line.strip() for line in lines])
    return Rows([row[0] for row in cells], numbers_where_all([row[1] for row in cells]), label_column="column 2")


def _stylegan(text: str, path: Path, request: Request) -> Rows:
    content = parse_json(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    labels = content.get("labels", ())
    if labels is None:  # as StyleGAN's tool writes a set without labels
        return Rows([])
    if not isinstance(labels, list) or not all(isinstance(row, list) and len(row) == 2 for row in labels):
        raise UserError(f"{path} holds no labels as StyleGAN has them: a list of [picture, number]")
    return Rows([str(name) for name, _ in labels], [label for _, label in labels], label_column="labels")
