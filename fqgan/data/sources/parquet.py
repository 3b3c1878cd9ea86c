"""Pictures in the columns of parquet files, and of Arrow files as `datasets.save_to_disk` writes them."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fqgan.base.errors import UnreadableError, UserError
from fqgan.base.files import reading
from fqgan.data.remote import RemoteFile, is_remote
from fqgan.data.sources.base import Findings, Found, ImageSource, Request, Stored
from fqgan.data.sources.folder import texts
from fqgan.data.sources.labels import check_labels, columns_by_name, joined, to_labels
from fqgan.data.sources.listing import CAPTION_COLUMNS, LABEL_COLUMNS
from fqgan.data.sources.tables import (
    File,
    class_names,
    features,
    image_column,
    image_columns,
    is_told,
    name_of,
    opened,
    opened_arrow,
    read_column,
    shape_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

FORM = "parquet files"
ARROW_FORM = "Arrow files of save_to_disk"


class Block(NamedTuple):
    """Where consecutive rows lie."""

    file: int
    """Number of its file."""
    group: int
    """Row group of a parquet file, or batch of an Arrow file."""
    first_row: int
    """Row of the file at which the block begins."""


class Table(NamedTuple):
    """What one file holds beside its pictures."""

    rows: list[int]
    """Of each row group or batch."""
    labels: Any
    """The raw label of every row, a pyarrow column; None where there is none."""
    classes: tuple[str, ...]
    """From the schema's Hugging Face metadata."""


class ParquetSource(ImageSource):
    """The rows of parquet or Arrow files, in the order of the files, whose blocks are the row groups or batches.

    The pictures are in the column that the options name, else in the one whose Hugging Face feature is an image, that
    goes by one of `IMAGE_COLUMNS`, or that is the only one of bytes (binary, or a struct with `bytes`); labels in the
    column that the options name, one of `LABEL_COLUMNS`, or the one whose feature is a class label. No file stays open,
    so that a source works alike in forked and in spawned processes. `UserError` for files that cannot be read, hold no
    image column, or no rows at all, and for labels that are no class.
    """

    def __init__(self, paths: Sequence[Path | str], request: Request, findings: Findings | None = None) -> None:
        self.name = request.spec
        self.findings = findings or Findings()
        self._open: list[File] = [RemoteFile(str(path)) if is_remote(path) else str(path) for path in paths]
        self._paths = list(map(name_of, self._open))
        self._arrow = self._paths[0].endswith(".arrow")
        self.findings.form = ARROW_FORM if self._arrow else FORM
        shapes = [shape_of(file) for file in self._open]
        for (schema, _), path in zip(shapes, self._paths, strict=True):
            if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise UserError(f"{path} has several columns of one name: {', '.join(twice)}")
        schema = shapes[0][0]
        self._column_name = image_column(schema, self._paths[0], request.options.image_column)
        if self._column_name != request.options.image_column and not is_told(schema, self._column_name):
            self.findings.warn(f"the column {self._column_name} is taken for the pictures by its type alone")
        # a label column may begin with a later file
        columns = (_label_column(each, path, request) for (each, _), path in zip(shapes, self._paths, strict=True))
        self._label_name = next(filter(None, columns), "")
        captions = columns_by_name(schema.names, CAPTION_COLUMNS)
        self._caption_name = captions[0] if captions else ""
        self._say(schema)
        self._blocks: list[Block] = []
        self.blocks = []
        tables = [self._index(number, schema, rows) for number, (schema, rows) in enumerate(shapes)]
        self._set_labels(tables, request)
        if not len(self.labels):
            raise UserError(f"{self.name} holds no picture: its {self.findings.form} have no rows")
        self._starts = np.cumsum(self.blocks) - self.blocks
        self._cached: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._cache_size = 2

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": OrderedDict()}  # a spawned worker fills its own

    def stored(self, index: int) -> Stored:
        block, row = self._locate(index)
        column = self._column(block)
        with reading(self.describe(index), "a picture", UnreadableError):  # as of a path that is no text
            cell = column[row].as_py()
        data, path = (cell["bytes"], cell.get("path")) if isinstance(cell, dict) else (cell, "")
        path = path if isinstance(path, str) else ""
        if data is None:
            beside = os.path.join(os.path.dirname(self._paths[self._blocks[block].file]), path)
            if path and os.path.isfile(beside):  # as datasets keeps pictures that it has not copied
                return Stored(Path(beside), path)
            raise UnreadableError(f"{self.describe(index)} holds no picture bytes")
        return Stored(data, path)

    def describe(self, index: int) -> str:
        block, row = self._locate(index)
        place = self._blocks[block]
        return f"row {place.first_row + row} of {self._paths[place.file]}"

    def names(self) -> Iterable[str]:
        return (f"{os.path.basename(self._paths[block.file])} {block.group}" for block in self._blocks)

    def files(self) -> Iterable[Path]:
        return [Path(file) for file in self._open if isinstance(file, str)]

    def captions(self) -> list[list[str]] | None:
        if not self._caption_name:
            return None
        found: list[list[str]] = []
        for file in self._open:
            schema, rows = shape_of(file)
            there = self._caption_name in schema.names
            with reading(name_of(file), "captions"):
                cells = read_column(file, self._caption_name).to_pylist() if there else [None] * sum(rows)
            found += map(texts, cells)
        return found

    def reserve(self, blocks: int) -> None:
        """Keep the encoded images of `blocks` row groups in memory. Shuffled reading needs as many as its window."""
        self._cache_size = blocks

    def _say(self, schema: pa.Schema) -> None:
        """Note which columns are read, and which are not."""
        used = {self._column_name, self._label_name, self._caption_name}
        others = [name for name in schema.names if name not in used]
        self.findings.ignored.update(f"column {name}" for name in others)
        self.findings.pictures_from = f"column {self._column_name}"
        self.findings.captions_from = f"column {self._caption_name}" if self._caption_name else ""
        if self._label_name:
            self.findings.labels_from = f"column {self._label_name}"

    def _index(self, number: int, schema: pa.Schema, rows: list[int]) -> Table:
        """Note the row groups of one file; returns what is in it beside the pictures."""
        path = self._paths[number]
        image_column(schema, path, self._column_name)
        first_row = 0
        for group, count in enumerate(rows):
            if count:
                self._blocks.append(Block(number, group, first_row))
                self.blocks.append(count)
                first_row += count
        there = self._label_name in schema.names
        labels = read_column(self._open[number], self._label_name) if there else None
        if labels is not None and len(labels) != sum(rows):
            raise UserError(f"{path} holds {len(labels)} labels for {sum(rows)} rows: it is damaged")
        if self._label_name and not there:
            self.findings.warn(f"{os.path.basename(path)} has no column {self._label_name}: no labels there")
        return Table(rows, labels, class_names(schema, self._label_name, path))

    def _set_labels(self, tables: list[Table], request: Request) -> None:
        names = [os.path.basename(path) for path in self._paths]
        given = joined([table.classes for table in tables], names)
        known = request.classes or given
        columns = [
            _numbers(table, path, given) if table.labels is not None else np.full(sum(table.rows), -1, np.int64)
            for table, path in zip(tables, self._paths, strict=True)
        ]
        where = f"the column {self._label_name} of {self.name}"
        named = any(isinstance(column, list) for column in columns)
        if named or (request.classes and given != request.classes):  # one list of classes for all files, by name
            values = [
                value for column in columns for value in (column if isinstance(column, list) else column.tolist())
            ]
            if given:
                values = [given[value] if type(value) is int and value >= 0 else value for value in values]
            values = [None if type(value) is int and value == -1 else value for value in values]
            self.labels, self.classes = to_labels(values, known, where, self.findings)
            return
        self.labels = np.concatenate([*map(np.asarray, columns), np.empty(0, np.int64)]).astype(np.int64)
        self.classes = given

    def _locate(self, index: int) -> tuple[int, int]:
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        return block, index - int(self._starts[block])

    def _column(self, block: int) -> pa.ChunkedArray:
        if block in self._cached:
            self._cached.move_to_end(block)
            return self._cached[block]
        while self._cached and len(self._cached) >= self._cache_size:
            self._cached.popitem(last=False)
        place = self._blocks[block]
        if self._arrow:
            with opened_arrow(self._paths[place.file]) as batches:
                column = batches[place.group].column(self._column_name)
        else:
            with opened(self._open[place.file]) as file:
                # arrow's threads would fight over the cores with the other loader processes
                column = file.read_row_group(place.group, columns=[self._column_name], use_threads=False)[
                    self._column_name
                ]
        self._cached[block] = column
        return column


def _label_column(schema: pa.Schema, path: str, request: Request) -> str:
    """The column that holds the labels; empty where there is none."""
    wanted = request.options.label_column
    if request.options.labels == "none":
        return ""
    if wanted:
        if wanted not in schema.names:
            raise UserError(f"{path} has no column {wanted}; its columns: {', '.join(schema.names)}")
        return wanted
    marked = [name for name, each in features(schema).items() if each.get("_type") == "ClassLabel"]
    found = [*columns_by_name(schema.names, LABEL_COLUMNS), *(name for name in marked if name in schema.names)]
    return found[0] if found else ""


def _numbers(table: Table, path: str, given: tuple[str, ...]) -> npt.NDArray[np.int64] | list[Any]:
    """One file's labels as numbers, or as names where it has names; by name where its own order is not `given`'s."""
    import pyarrow as pa

    kind = table.labels.type
    if not pa.types.is_integer(kind):
        with reading(f"the labels of {path}", "names"):
            return table.labels.to_pylist()
    with reading(f"the labels of {path}", "whole numbers below 2^31"):
        labels = table.labels.cast(pa.int64()).fill_null(-1).to_numpy()
    check_labels(labels, table.classes or given, path)
    if table.classes and table.classes != given:
        order = np.array([*(given.index(name) for name in table.classes), -1])
        labels = order[labels]
    return labels


def has_pictures(path: str) -> bool:
    """Whether a parquet file has a column that is said to hold pictures, by its feature or its name."""
    schema, _ = shape_of(path)
    return any(is_told(schema, name) for name in image_columns(schema))


def claims(found: Found) -> bool:
    """Whether files are of this form."""
    return found.suffix in (".parquet", ".arrow") or found.head.startswith((b"PAR1", b"ARROW1"))


def open_found(found: Found, request: Request, findings: Findings) -> ParquetSource:
    """Open them."""
    return ParquetSource(found.files, request, findings)
