"""Any image source to resized pictures in parquet shards of the Hugging Face layout."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fqgan.base import schema
from fqgan.base.errors import UnreadableError, UserError
from fqgan.base.files import is_name, sync, write_text, writing
from fqgan.base.folder import ResumableFolder
from fqgan.base.schema import changes
from fqgan.data.fingerprint import data_fingerprint
from fqgan.data.order import epoch_order, spread_over_blocks
from fqgan.data.shards import ROW_GROUP, Manifest, PackOptions, Shard, shard_writer
from fqgan.data.sources import ImageSource, Stored
from fqgan.data.transforms import resize_shorter
from fqgan.data.unreadable import Note, Omissions
from fqgan.data.workers import load

SAMPLE = 32
"""Pictures behind the estimate of the space needed, and whose pixels are compared when packing goes on."""
CHUNK = 32
"""Pictures that a worker makes at a time; from sources of several blocks a whole row group, so that workers do not all
read the same block."""
FORMATS = {"jpeg": ("JPEG", "jpg"), "png": ("PNG", "png")}
"""Format -> Pillow's name and the suffix of the pictures' paths."""


class Packer:
    """Packs `source` into `folder`, or goes on where an earlier attempt ended.

    Shards are fixed ranges of a fixed order: the same bytes for any number of workers and any interruption. They
    stay in `.SPLIT-unfinished` until the last one is done, so that nobody takes some of them for the whole set. The
    record `.SPLIT.pack.json` is hidden as well: other readers of parquet folders stumble over files that are none.

    Args:
        max_unreadable: share of the pictures that may be unreadable. They are left out; more than that (and more than
            ten) end the packing, as does the first one where it is 0.

    Raises:
        UserError: the folder holds other parquet files, or shards from another source or of other options.
    """

    def __init__(
        self, source: ImageSource, folder: Path, options: PackOptions, *, workers: int = 4, max_unreadable: float = 0.01
    ):
        self.source, self.folder, self.options = source, folder, options
        self.workers, self.max_unreadable = workers, max_unreadable
        self._work = ResumableFolder(
            folder,
            kind="packed set",
            known=lambda: any(folder.glob(".*.pack.json")),
            lock=f".{options.split}-unfinished/lock",
        )
        self._work.check_own()
        self.order = packing_order(source, options.shuffle)
        self.data = data_fingerprint(source)
        samples, self.bytes_each = _sample(source, options)
        self.manifest = Manifest(source.name, samples, options)
        self._check_neighbours()
        self._continue()

    @property
    def manifest_path(self) -> Path:
        """The record of source, options and finished shards."""
        return self.folder / f".{self.options.split}.pack.json"

    @property
    def unfinished(self) -> Path:
        """Where shards wait for the last one."""
        return self.folder / f".{self.options.split}-unfinished"

    @property
    def bytes_needed(self) -> int:
        """Estimate of what is still to be written."""
        return round(self.bytes_each * (len(self.source) - self.done))

    @property
    def done(self) -> int:
        """Pictures in finished shards, and those left out of them."""
        return sum(shard.stop - shard.start for shard in self.manifest.shards)

    def run(
        self, advance: Callable[[int], None] = lambda count: None, note: Callable[[str], None] = lambda text: None
    ) -> Manifest:
        """Pack all that is missing.

        `advance` is called with the number of pictures done, `note` with a line for each that is left out and each
        finished shard.
        `UserError` when too many pictures cannot be read or another process is at it, `UnwritableError` on a full disk:
        finished shards are kept.
        """
        if self.manifest.complete:
            return self.manifest
        self._work.take()
        try:
            self._continue()  # another process may have gone on before this one took the lock
            self._pack(advance, note)
            self._publish()
        finally:
            if self.manifest.complete or not self.manifest.shards:
                self._work.abandon()
            else:
                self._work.release()
        return self.manifest

    def _check_neighbours(self) -> None:
        """Files that no manifest tells of would be read as a part of this set."""
        for file in sorted(self.folder.glob("*.parquet")):
            if not (self.folder / f".{file.name.split('-')[0]}.pack.json").exists():
                raise UserError(f"{self.folder} holds {file.name}, which was not packed there: use a new --out")

    def _continue(self) -> None:
        """Take over the finished shards of an earlier attempt, but for those that have been lost since."""
        if not self.manifest_path.exists():
            return
        content = schema.load_json(self.manifest_path)
        data = schema.entry(content, "data", dict, self.manifest_path, default={})
        content.pop("data", None)
        old = schema.from_dict(Manifest, content, str(self.manifest_path))
        for shard in old.shards:
            counts = shard.start, shard.stop, shard.rows, shard.bytes, shard.below_size
            if not is_name(shard.file) or not all(0 <= count < 2**53 for count in counts):
                raise UserError(f"{self.manifest_path}: shards hold {str(shard)[:100]}, which is none")
        shards = tuple(shard for shard in old.shards if self._find(shard))
        if not shards:
            return
        # a broken picture may have been repaired
        pairs = zip(old.samples, self.manifest.samples, strict=False)
        other_pixels = "other pixels" if any(a and b and a != b for a, b in pairs) else ""
        if changed := changes(data, self.data) or other_pixels:
            raise UserError(
                f"{self.folder} is packed from {old.source}, which is another source or has changed since ({changed}): "
                "use a new --out"
            )
        self._work.changed(old.options, self.options)
        self.manifest = replace(old, shards=shards, complete=old.complete and len(shards) == self.options.shards)

    def _find(self, shard: Shard) -> Path | None:
        """Where a finished shard lies."""
        for place in (self.folder / shard.file, self.unfinished / shard.file):
            if place.is_file() and place.stat().st_size == shard.bytes:
                return place
        return None

    def _pack(self, advance: Callable[[int], None], note: Callable[[str], None]) -> None:
        """Write the missing shards."""
        there = {shard.start for shard in self.manifest.shards}
        missing = [shard for shard in self._plan() if shard.start not in there]
        chunks = (chunk for shard in missing for chunk in self._chunks(shard))
        self.source.reserve(1)  # every block is read once, in order
        batches = load(partial(_read, self.source, self.order, self.options), chunks, self.workers, False)
        try:
            for shard in missing:
                finished = self._write(shard, batches, advance, note)
                shards = sorted([*self.manifest.shards, finished], key=lambda each: each.start)
                self.manifest = replace(self.manifest, shards=tuple(shards))
                self._record()
                note(f"{shard.file}: {finished.rows} pictures, {finished.bytes / 1e6:.1f} MB")
        finally:
            batches.close()

    def _plan(self) -> list[Shard]:
        """All shards, as ranges of positions."""
        count, total = self.options.shards, len(self.source)
        return [
            Shard(f"{self.options.split}-{i:05d}-of-{count:05d}.parquet", i * total // count, (i + 1) * total // count)
            for i in range(count)
        ]

    def _chunks(self, shard: Shard) -> Iterator[list[int]]:
        """The shard's positions in lists for the workers; none reaches over the end of a block."""
        length = CHUNK if len(self.source.blocks) == 1 else ROW_GROUP
        ends = np.cumsum(self.source.blocks) if len(self.source.blocks) > 1 else np.array([len(self.source)])
        start = shard.start
        while start < shard.stop:
            end = int(ends[np.searchsorted(ends, start, side="right")])
            stop = min(start + length, end, shard.stop)
            yield list(range(start, stop))
            start = stop

    def _write(
        self, shard: Shard, batches: Iterator[Any], advance: Callable[[int], None], note: Callable[[str], None]
    ) -> Shard:
        """Write one shard; returns it with what it holds."""
        path = self.unfinished / shard.file
        rows = below = 0
        problems: list[str] = []
        before = len(self.manifest.unreadable)
        omissions = Omissions(self.source.name, len(self.source), self.max_unreadable, self.manifest_path, before)
        with shard_writer(path, self.source) as add:
            for chunk in self._chunks(shard):
                for data, name, numbers in zip(*next(batches), strict=True):
                    label, side = map(int, numbers.split())
                    if not side:
                        problems.append(name)
                        omissions.add(name, note)
                        continue
                    add(data, name, label)
                    rows, below = rows + 1, below + (side < self.options.size)
                advance(len(chunk))
        return replace(shard, rows=rows, bytes=path.stat().st_size, below_size=below, unreadable=tuple(problems))

    def _publish(self) -> None:
        """All shards are there: give them their place."""
        if not self.manifest.rows:
            raise UserError(f"not one picture of {self.source.name} can be read: {self.manifest.unreadable[0]}")
        with writing(self.folder):
            for shard in self.manifest.shards:
                if (place := self._find(shard)) and place.parent == self.unfinished:
                    place.rename(self.folder / shard.file)
            self.manifest = replace(self.manifest, complete=True)
            self._record()
            sync(self.folder)

    def _record(self) -> None:
        content = {**schema.to_dict(self.manifest), "data": self.data}
        write_text(self.manifest_path, json.dumps(content, indent=2) + "\n")


def packing_order(source: ImageSource, shuffle: bool) -> npt.NDArray[np.int64]:
    """Index of the picture at every position. Only random-access sources are shuffled: others have to be read in their
    own order, block after block."""
    if shuffle and len(source.blocks) == 1:
        return epoch_order(source.blocks, seed=0, epoch=0, window=1)
    return np.arange(len(source), dtype=np.int64)


def _read(
    source: ImageSource, order: npt.NDArray[np.int64], options: PackOptions, position: int
) -> tuple[tuple[bytes, str, str], list[Note]]:
    """Encoded picture, its path, and label and shorter side in pixels. Side 0: it cannot be read, and path tells why.

    Numbers are text on their way, or they would become tensors in shared memory: when Ctrl-C comes while these are
    handed over, their worker prints a traceback.
    """
    index = int(order[position])
    try:
        image, label = source.read(index)
    except UnreadableError as error:
        return (b"", str(error), "-1 0"), []
    original = source.stored(index)
    name, suffix = original.path if original else "", FORMATS[options.format][1]
    path = str(Path(name).with_suffix(f".{suffix}")) if name else f"{index:08d}.{suffix}"
    return (encode(image, original, options), path, f"{label} {min(image.size)}"), []


def encode(image: Image.Image, original: Stored | None, options: PackOptions) -> bytes:
    """A picture in the packed format, its shorter side reduced where it is larger.

    One that needs no reduction and has the format already keeps its bytes: encoding it again would only cost quality.
    """
    if min(image.size) > options.shorter_side:
        image = resize_shorter(image, options.shorter_side)
    elif original is not None:
        data = original.data.read_bytes() if isinstance(original.data, Path) else original.data
        with Image.open(io.BytesIO(data)) as found:
            if found.format == FORMATS[options.format][0]:
                return data
    image.info = {}  # no colour profile and the like: training does not look at them
    buffer = io.BytesIO()
    # full colour resolution: a tokenizer would learn to blur colours otherwise
    details: dict[str, Any] = {"quality": options.quality, "subsampling": 0} if options.format == "jpeg" else {}
    image.save(buffer, FORMATS[options.format][0], **details)
    return buffer.getvalue()


def _sample(source: ImageSource, options: PackOptions) -> tuple[tuple[str, ...], float]:
    """Digests of the pixels of a few pictures, empty for unreadable ones, and the mean bytes of these when packed."""
    digests, sizes = [], []
    for index in spread_over_blocks(source.blocks, SAMPLE, most_blocks=8):
        try:
            image, _ = source.read(index)
        except UnreadableError:
            digests.append("")
            continue
        digests.append(hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:16])
        sizes.append(len(encode(image, source.stored(index), options)))
    return tuple(digests), sum(sizes) / max(1, len(sizes))
