"""Pictures in the columns of parquet files, and of Arrow files as `datasets.save_to_disk` writes them."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fqgan.data.sources.base import Findings, Found, ImageSource, Request, Stored
from fqgan.data.sources.folder import texts
from fqgan.data.sources.labels import check_labels, columns_by_name, joined, to_labels
from fqgan.data.sources.listing import CAPTION_COLUMNS, LABEL_COLUMNS
from fqgan.errors import UnreadableError, UserError

if TYPE_CHECKING:
    import pyarrow as pa

FORM = "parquet files"
ARROW_FORM = "Arrow files of save_to_disk"
IMAGE_COLUMNS = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp"),
    *("image_bytes", "img_bytes", "bytes", "pixel_values", "data", "content"),
)


class Block(NamedTuple):
    """Where consecutive rows lie."""

    path: str
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
        self._paths = [str(path) for path in paths]
        self._arrow = self._paths[0].endswith(".arrow")
        self.findings.form = ARROW_FORM if self._arrow else FORM
        schema = schema_of(self._paths[0])
        self._column_name = image_column(schema, self._paths[0], request.options.image_column)
        self._label_name = _label_column(schema, self._paths[0], request)
        captions = columns_by_name(schema.names, CAPTION_COLUMNS)
        self._caption_name = captions[0] if captions else ""
        self._say(schema)
        self._blocks: list[Block] = []
        self.blocks = []
        tables = [self._index(path) for path in self._paths]
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
        cell = self._column(block)[row].as_py()
        data, path = (cell["bytes"], cell.get("path")) if isinstance(cell, dict) else (cell, "")
        if (
            data is None
            and path
            and os.path.isfile(beside := os.path.join(os.path.dirname(self._blocks[block].path), path))
        ):
            return Stored(Path(beside), path)  # as datasets keeps pictures that it has not copied
        if data is None:
            raise UnreadableError(f"{self.describe(index)} holds no picture bytes")
        return Stored(data, path or "")

    def describe(self, index: int) -> str:
        block, row = self._locate(index)
        place = self._blocks[block]
        return f"row {place.first_row + row} of {place.path}"

    def names(self) -> Iterable[str]:
        return (f"{os.path.basename(block.path)} {block.group}" for block in self._blocks)

    def files(self) -> Iterable[Path]:
        return map(Path, self._paths)

    def captions(self) -> list[list[str]] | None:
        if not self._caption_name:
            return None
        return [texts(cell) for path in self._paths for cell in read_column(path, self._caption_name).to_pylist()]

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

    def _index(self, path: str) -> Table:
        """Note the row groups of one file; returns what is in it beside the pictures."""
        schema, rows = _shape_of(path)
        image_column(schema, path, self._column_name)
        first_row = 0
        for group, count in enumerate(rows):
            if count:
                self._blocks.append(Block(path, group, first_row))
                self.blocks.append(count)
                first_row += count
        there = self._label_name in schema.names
        labels = read_column(path, self._label_name) if there else None
        if self._label_name and not there:
            self.findings.warn(f"{os.path.basename(path)} has no column {self._label_name}: no labels there")
        return Table(rows, labels, _class_names(schema, self._label_name))

    def _set_labels(self, tables: list[Table], request: Request) -> None:
        names = [os.path.basename(path) for path in self._paths]
        given = joined([table.classes for table in tables], names)
        known = request.classes or given
        columns = [
            _numbers(table, path, given) if table.labels is not None else np.full(sum(table.rows), -1, np.int64)
            for table, path in zip(tables, self._paths, strict=True)
        ]
        if any(isinstance(column, list) for column in columns):  # names: one list of classes for all files
            values = [
                value for column in columns for value in (column if isinstance(column, list) else column.tolist())
            ]
            values = [None if value == -1 else value for value in values]
            where = f"the column {self._label_name} of {self.name}"
            self.labels, self.classes = to_labels(values, known, where, self.findings)
            return
        self.labels = np.concatenate([*map(np.asarray, columns), np.empty(0, np.int64)]).astype(np.int64)
        self.classes = given
        if request.classes and given and request.classes != given:  # by name
            values = [None if label < 0 else given[label] for label in self.labels]
            self.labels, self.classes = to_labels(values, request.classes, self.name, self.findings)
        elif request.classes and self._label_name:
            check_labels(self.labels, request.classes, self.name)
            self.classes = request.classes

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
            with _arrow_opened(place.path) as batches:
                column = batches[place.group].column(self._column_name)
        else:
            with opened(place.path) as file:
                # arrow's threads would fight over the cores with the other loader processes
                column = file.read_row_group(place.group, columns=[self._column_name], use_threads=False)[
                    self._column_name
                ]
        self._cached[block] = column
        return column


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A parquet file; `UserError` where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as parquet (cut short, or another format?): {reason}") from None


@contextmanager
def _arrow_opened(path: str) -> Iterator[list[Any]]:
    """The record batches of an Arrow file (mapped, not read), in either of its two formats."""
    import pyarrow as pa

    try:
        with pa.memory_map(path) as file:
            try:
                yield list(pa.ipc.open_stream(file))
            except pa.ArrowInvalid:
                file.seek(0)
                reader = pa.ipc.open_file(file)
                yield [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as Arrow (cut short, or another format?): {reason}") from None


def _shape_of(path: str) -> tuple[pa.Schema, list[int]]:
    """The schema of a file, and the rows of its groups or batches."""
    if path.endswith(".arrow"):
        with _arrow_opened(path) as batches:
            if not batches:
                raise UserError(f"{path} holds no rows")
            return batches[0].schema, [batch.num_rows for batch in batches]
    with opened(path) as file:
        metadata = file.metadata
        return file.schema_arrow, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def schema_of(path: str) -> pa.Schema:
    """The columns of a file."""
    return _shape_of(path)[0]


def read_column(path: str, name: str) -> pa.ChunkedArray:
    """One whole column of a file."""
    import pyarrow as pa

    if path.endswith(".arrow"):
        with _arrow_opened(path) as batches:
            return pa.chunked_array([batch.column(name) for batch in batches])
    with opened(path) as file:
        return file.read(columns=[name], use_threads=False)[name]


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns that may hold pictures, the likeliest first."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    features = [name for name in fitting if _features(schema).get(name, {}).get("_type") == "Image"]
    return list(
        dict.fromkeys(
            [*columns_by_name(features, IMAGE_COLUMNS), *features, *columns_by_name(fitting, IMAGE_COLUMNS), *fitting]
        )
    )


def image_column(schema: pa.Schema, path: str, wanted: str = "") -> str:
    """The column that holds the pictures; `UserError` where there is none, or several of equal rank."""
    columns = image_columns(schema)
    if wanted and wanted in schema.names and wanted not in columns:
        kind = schema.field(wanted).type
        raise UserError(
            f"{path}: the column {wanted} holds {kind}, no pictures (binary, or a struct with the field bytes)"
        )
    if not columns or (wanted and wanted not in columns):
        raise UserError(
            f"{path} has no image column {wanted or '(binary, or a struct with the field bytes)'}; its columns: "
            + ", ".join(schema.names)
        )
    if wanted:
        return wanted
    known = columns_by_name(columns, IMAGE_COLUMNS)
    if not known and len(columns) > 1 and _features(schema).get(columns[0], {}).get("_type") != "Image":
        raise UserError(f"{path} has several columns of bytes ({', '.join(columns)}): choose with --data.image-column")
    return columns[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_column(schema: pa.Schema, path: str, request: Request) -> str:
    """The column that holds the labels; empty where there is none."""
    wanted = request.options.label_column
    if request.options.labels == "none":
        return ""
    if wanted:
        if wanted not in schema.names:
            raise UserError(f"{path} has no column {wanted}; its columns: {', '.join(schema.names)}")
        return wanted
    features = [name for name, each in _features(schema).items() if each.get("_type") == "ClassLabel"]
    found = [*columns_by_name(schema.names, LABEL_COLUMNS), *(name for name in features if name in schema.names)]
    return found[0] if found else ""


def _numbers(table: Table, path: str, given: tuple[str, ...]) -> npt.NDArray[np.int64] | list[Any]:
    """One file's labels as numbers, or as names where it has names; by name where its own order is not `given`'s."""
    import pyarrow as pa

    kind = table.labels.type
    if not pa.types.is_integer(kind):
        return [None if value is None else value for value in table.labels.to_pylist()]
    labels = table.labels.cast(pa.int64()).fill_null(-1).to_numpy()
    check_labels(labels, table.classes, path)
    if table.classes and table.classes != given:
        order = np.array([*(given.index(name) for name in table.classes), -1])
        labels = order[labels]
    return labels


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The Hugging Face features of a schema; empty where it has none, or none that can be read."""
    try:
        content = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {name: each for name, each in content.items() if isinstance(each, dict)} if isinstance(content, dict) else {}


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    names = _features(schema).get(column, {}).get("names")
    return tuple(map(str, names)) if isinstance(names, list) else ()


def has_pictures(path: str) -> bool:
    """Whether a parquet file has a column that may hold pictures."""
    return bool(image_columns(schema_of(path)))


def claims(found: Found) -> bool:
    """Whether files are of this form."""
    return found.suffix in (".parquet", ".arrow") or found.head.startswith((b"PAR1", b"ARROW1"))


def open_found(found: Found, request: Request, findings: Findings) -> ParquetSource:
    """Open them."""
    return ParquetSource(found.files, request, findings)
