"""Parquet shards of the Hugging Face image layout, and the record of what they were packed from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fqgan.base.files import replacing, sync
from fqgan.data.sources import ImageSource

ROW_GROUP = 256
"""Pictures of a row group: what shuffled reading takes from the disk at once."""


@dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of a packed set."""

    split: str = "train"
    size: int = 256
    crop_min: float = 0.0
    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95
    shards: int = 1
    shuffle: bool = True

    @property
    def shorter_side(self) -> int:
        """Pixels that the shorter side is reduced to: the largest that the random crop asks for, or `size`."""
        return math.ceil(self.size / self.crop_min) if self.crop_min else self.size


@dataclass(frozen=True)
class Shard:
    """One file of a packed set."""

    file: str
    start: int
    """Its first position in the order of packing."""
    stop: int
    rows: int = 0
    bytes: int = 0
    below_size: int = 0
    """Pictures whose shorter side is below `size`."""
    unreadable: tuple[str, ...] = ()
    """What is wrong with each picture that was left out."""


@dataclass(frozen=True)
class Manifest:
    """What a folder was packed from, and how far."""

    source: str
    samples: tuple[str, ...]
    """Digests of the pixels of some pictures."""
    options: PackOptions
    complete: bool = False
    shards: tuple[Shard, ...] = ()
    """Those that are done."""

    @property
    def rows(self) -> int:
        """Pictures packed."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of the shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def unreadable(self) -> list[str]:
        """What is wrong with each picture that was left out."""
        return [problem for shard in self.shards for problem in shard.unreadable]


@contextmanager
def shard_writer(path: Path, source: ImageSource) -> Iterator[Callable[[bytes, str, int], None]]:
    """Hands out add(encoded picture, its path, its label). The file exists, whole, when the context ends without error;
    otherwise nothing is left of it. `UnwritableError` on a full disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = {"names": list(source.classes), "_type": "ClassLabel"} if source.classes else {"dtype": "int64", **_VALUE}
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.schema({"image": image, "label": pa.int64()}, metadata={"huggingface": features})
    # pictures are compressed already, and statistics of them would be copies of pictures
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": ["label"]}
    rows: list[dict[str, Any]] = []
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            writer = pq.ParquetWriter(file, table, **options)

            def flush() -> None:
                writer.write_table(pa.Table.from_pylist(rows, schema=table))
                rows.clear()

            def add(data: bytes, name: str, label: int) -> None:
                rows.append({"image": {"bytes": data, "path": name}, "label": label})
                if len(rows) == ROW_GROUP:
                    flush()

            try:
                yield add
                if rows:
                    flush()
                writer.close()
            finally:
                writer.is_open = False  # after an error it would try to write the file's end when it is collected
        sync(temporary)
    sync(path.parent)


_VALUE = {"_type": "Value"}
