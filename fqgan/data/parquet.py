"""Images in parquet files of the Hugging Face layout."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fqgan.data.decode import decode_image
from fqgan.errors import UnreadableError, UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class RowGroup(NamedTuple):
    """Where one block of images lies."""

    path: Path
    column: str
    group: int
    first_row: int
    """Row of the file at which the group begins."""


class ParquetSource:
    """The rows of parquet files, in the order of the files, as an `ImageSource` whose blocks are the row groups.

    The images are in the column `image` (a struct with `bytes`, or binary), else in the first column of such a type;
    labels in the integer column `label`, if there is one; class names in the schema's Hugging Face metadata.
    No file stays open, so that a source works alike in forked and in spawned processes. `UserError` for files that
    cannot be read, hold no image column, or hold no rows at all, and for labels that are no class.
    """

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.name = name
        self.classes: tuple[str, ...] = ()
        self._groups: list[RowGroup] = []
        self.blocks: list[int] = []
        labels = [self._index(path) for path in paths]
        self.labels = np.concatenate([*labels, np.empty(0, np.int64)])
        if not len(self.labels):
            raise UserError(f"{name} holds no picture: its parquet files have no rows")
        self._starts = np.cumsum(self.blocks) - self.blocks
        self._cached: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._cache_size = 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": OrderedDict()}  # a spawned worker fills its own

    def read(self, index: int) -> tuple[Image.Image, int]:
        block, row = self._locate(index)
        cell = self._column(block)[row].as_py()
        data = cell["bytes"] if isinstance(cell, dict) else cell
        if data is None:
            raise UnreadableError(f"{self.describe(index)} holds no picture bytes")
        return decode_image(data, self.describe(index)), int(self.labels[index])

    def describe(self, index: int) -> str:
        block, row = self._locate(index)
        group = self._groups[block]
        return f"row {group.first_row + row} of {group.path}"

    def names(self) -> Iterable[str]:
        return (f"{group.path.name} {group.group}" for group in self._groups)

    def files(self) -> Iterable[Path]:
        return dict.fromkeys(group.path for group in self._groups)

    def reserve(self, blocks: int) -> None:
        """Keep the encoded images of `blocks` row groups in memory. Shuffled reading needs as many as its window."""
        self._cache_size = blocks

    def _index(self, path: Path) -> npt.NDArray[np.int64]:
        """Note the row groups of one file; returns its labels."""
        with opened(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            column = _image_column(schema, path)
            self.classes = self.classes or _class_names(schema)
            first_row = 0
            for group in range(metadata.num_row_groups):
                if rows := metadata.row_group(group).num_rows:
                    self._groups.append(RowGroup(path, column, group, first_row))
                    self.blocks.append(rows)
                    first_row += rows
            labels = _labels(file, path)
        _check_labels(labels, self.classes, path)
        return labels

    def _locate(self, index: int) -> tuple[int, int]:
        block = int(np.searchsorted(self._starts, index, side="right")) - 1
        return block, index - int(self._starts[block])

    def _column(self, block: int) -> pa.ChunkedArray:
        if block in self._cached:
            self._cached.move_to_end(block)
            return self._cached[block]
        while self._cached and len(self._cached) >= self._cache_size:
            self._cached.popitem(last=False)
        place = self._groups[block]
        with opened(place.path) as file:
            # arrow's threads would fight over the cores with the other loader processes
            table = file.read_row_group(place.group, columns=[place.column], use_threads=False)
        self._cached[block] = table[place.column]
        return self._cached[block]


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A parquet file; `UserError` where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as parquet (cut short, or another format?): {reason}") from None


def _image_column(schema: pa.Schema, path: Path) -> str:
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    if not columns:
        raise UserError(
            f"{path} has no image column (binary, or a struct with the field bytes); its columns: "
            + ", ".join(schema.names)
        )
    return "image" if "image" in columns else columns[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _labels(file: pq.ParquetFile, path: Path) -> npt.NDArray[np.int64]:
    """Labels of all rows; -1 where there are none."""
    import pyarrow as pa

    schema = file.schema_arrow
    if "label" not in schema.names:
        return np.full(file.metadata.num_rows, -1, np.int64)
    kind = schema.field("label").type
    if not pa.types.is_integer(kind):
        raise UserError(f"{path}: the column label must hold integers, not {kind}")
    column = file.read(columns=["label"], use_threads=False)["label"]
    return column.cast(pa.int64()).fill_null(-1).to_numpy()


def _check_labels(labels: npt.NDArray[np.int64], classes: tuple[str, ...], path: Path) -> None:
    """`UserError` for the first label that is neither -1 (none) nor the number of a class."""
    wrong = (labels < -1) | (labels >= (len(classes) or np.iinfo(np.int64).max))
    if wrong.any():
        row = int(wrong.argmax())
        known = f"the {len(classes)} classes are 0 to {len(classes) - 1}, and " if classes else ""
        raise UserError(f"row {row} of {path} has the label {labels[row]}: {known}-1 stands for none")


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    metadata = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(metadata).get("info", {}).get("features", {}) if metadata else {}
    return tuple(features.get("label", {}).get("names") or ())
