"""Parquet and Arrow files: their columns, rows and Hugging Face metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from fqgan.base.errors import UserError
from fqgan.base.files import check_file, reading
from fqgan.base.schema import entry, parse_json
from fqgan.data.remote import RemoteFile
from fqgan.data.sources.labels import columns_by_name

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp"),
    *("image_bytes", "img_bytes", "bytes", "pixel_values", "data", "content"),
)
_MOST_ROWS = 1000  # of a byte: equal rows are stored once

File = str | RemoteFile
"""A path on this machine, or a file elsewhere."""


@contextmanager
def opened(file: File) -> Iterator[Any]:
    """A parquet file; `UserError` where it cannot be read."""
    import pyarrow.parquet as pq

    if isinstance(file, str):
        check_file(Path(file))
    with reading(name_of(file), "parquet"), pq.ParquetFile(file) as content:
        yield content


@contextmanager
def opened_arrow(path: str) -> Iterator[list[Any]]:
    """The record batches of an Arrow file (mapped, not read), in either of its two formats."""
    import pyarrow as pa

    check_file(Path(path))
    with reading(path, "Arrow"), pa.memory_map(path) as file:
        try:
            batches = list(pa.ipc.open_stream(file))
        except pa.ArrowInvalid:
            file.seek(0)
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        yield batches


def name_of(file: File) -> str:
    """What messages call a file."""
    return file.name if isinstance(file, RemoteFile) else file


def _is_arrow(file: File) -> TypeGuard[str]:
    return isinstance(file, str) and file.endswith(".arrow")


def shape_of(file: File) -> tuple[pa.Schema, list[int]]:
    """The schema of a file, and the rows of its groups or batches; `UserError` for what cannot be."""
    if _is_arrow(file):
        with opened_arrow(file) as batches:
            if not batches:
                raise UserError(f"{file} holds no rows")
            for batch in batches:  # what points outside of the file would end the process when it is read
                batch.validate(full=True)
            return _checked(file, batches[0].schema, [batch.num_rows for batch in batches])
    with opened(file) as content:
        metadata = content.metadata
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return _checked(file, content.schema_arrow, rows)


def _checked(file: File, schema: pa.Schema, rows: list[int]) -> tuple[pa.Schema, list[int]]:
    """`UserError` for counts of rows that the file cannot hold, before labels are laid out for them."""
    size = file.size if isinstance(file, RemoteFile) else check_file(Path(file))
    if min(rows, default=0) < 0 or sum(rows) > _MOST_ROWS * size:
        raise UserError(f"{name_of(file)} promises {sum(rows):,} rows in {size:,} bytes")
    return schema, rows


def read_column(file: File, name: str) -> pa.ChunkedArray:
    """One whole column of a file."""
    import pyarrow as pa

    if _is_arrow(file):
        with opened_arrow(file) as batches:
            return pa.chunked_array([batch.column(name) for batch in batches])
    with opened(file) as content:
        return content.read(columns=[name], use_threads=False)[name]


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns that may hold pictures, the likeliest first."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    marked = [name for name in fitting if features(schema).get(name, {}).get("_type") == "Image"]
    return list(
        dict.fromkeys(
            [*columns_by_name(marked, IMAGE_COLUMNS), *marked, *columns_by_name(fitting, IMAGE_COLUMNS), *fitting]
        )
    )


def is_told(schema: pa.Schema, column: str) -> bool:
    """Whether a column's feature or name says that it holds pictures."""
    return features(schema).get(column, {}).get("_type") == "Image" or bool(columns_by_name([column], IMAGE_COLUMNS))


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
    if not known and len(columns) > 1 and features(schema).get(columns[0], {}).get("_type") != "Image":
        raise UserError(f"{path} has several columns of bytes ({', '.join(columns)}): choose with --data.image-column")
    return columns[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and not pa.types.is_struct(kind.field(index).type) and _holds_bytes(kind.field(index).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def features(schema: pa.Schema) -> dict[str, Any]:
    """The Hugging Face features of a schema; empty where it has none, or none that can be read."""
    try:
        content = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), "metadata")
        found = entry(entry(content, "info", dict, "metadata"), "features", dict, "metadata")
    except UserError:  # other programs' metadata are none of ours
        return {}
    return {name: each for name, each in found.items() if isinstance(each, dict)}


def class_names(schema: pa.Schema, column: str, path: str) -> tuple[str, ...]:
    """What the features call the classes of a column; `UserError` for names that are none."""
    names = features(schema).get(column, {}).get("names")
    names = names if isinstance(names, list) else []
    if odd := [name for name in names if not isinstance(name, str | int)]:
        raise UserError(f"{path}: the class names of {column} hold {str(odd[0])[:40]}, which is no name")
    return tuple(map(str, names))
