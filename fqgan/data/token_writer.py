"""Writing a token store: shard by shard, by several ranks, going on after any interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import replacing, sync, write_text
from fqgan.base.folder import ResumableFolder
from fqgan.base.schema import changes
from fqgan.data.token_manifest import (
    MANIFEST,
    SETTINGS,
    TOKENIZER,
    UNFINISHED,
    LeftOut,
    StoreManifest,
    StoreShard,
    parse_manifest,
)
from fqgan.data.tokens import file_of, problems

SHARDS = 1024
"""Shards of a store at most,"""
SHARD_CROPS = 1024
"""but no smaller than this many crops, where nothing else is asked for."""


def images_per_shard(images: int, num_crops: int) -> int:
    """Pictures behind a shard, a function of the data alone: few enough that a kill costs little, enough that a large
    store opens fast."""
    return max(-(-SHARD_CROPS // num_crops), -(-images // SHARDS))


class TokenWriter:
    """Makes the store `folder`, or goes on with it.

    Shards are fixed ranges of the data set; each is written to a temporary name, renamed, and then recorded in
    `.unfinished` with its sum. The manifest comes last: without it there is no store. One rank calls `begin`, `finish`
    and `close`, any rank `write`.

    Args:
        manifest: what the store will hold, without files and shards.
        images: pictures in the data set.
    """

    def __init__(self, folder: Path, manifest: StoreManifest, images: int) -> None:
        self.folder, self.manifest, self.images = folder, manifest, images
        length = manifest.options.images_per_shard
        self.ranges = [(start, min(start + length, images)) for start in range(0, images, length)]
        """(start, stop) of each shard."""
        self._work = ResumableFolder(
            folder,
            kind="token store",
            known=lambda: self._stored() is not None,
            lock=f"{UNFINISHED}/lock",
            beside=[TOKENIZER, SETTINGS],
        )

    @property
    def unfinished(self) -> Path:
        """Settings and records of a store in the making."""
        return self.folder / UNFINISHED

    def begin(
        self, export: Callable[[Path], object], verify: bool = False, note: Callable[[str], None] = lambda text: None
    ) -> list[int]:
        """Take the lock; returns the numbers of the shards to write, none for a finished store.

        Args:
            export: writes the tokenizer into a folder.
            verify: read the finished shards and check their sums, not only their sizes.
            note: is called with a line for each damaged file, which is made again.

        Raises:
            UserError: the folder holds something else, a store of other settings or data, or another process is at it.
        """
        self._work.check_own()
        if (stored := self._stored()) is not None:
            self._check_same(stored)
            if stored.shards and not self.unfinished.exists() and not any(problems(self.folder, stored, verify)):
                self.manifest = stored
                return []
        self._work.take()
        self._reopen()
        return self._missing(export, verify, note)

    def write(
        self, number: int, codes: npt.NDArray[Any], labels: npt.NDArray[np.int64], unreadable: Sequence[LeftOut]
    ) -> StoreShard:
        """Write one shard: codes (images, crops, k, h*w), labels (images,). `UnwritableError` on a full disk."""
        start, stop = self.ranges[number]
        names = f"codes-{number:05d}.npy", f"labels-{number:05d}.npy"
        for name, array in zip(names, (codes.astype(self.manifest.options.dtype), labels.astype("<i8")), strict=True):
            with replacing(self.folder / name) as temporary:
                with temporary.open("wb") as file:
                    np.save(file, array)
                sync(temporary)
        first, second = (file_of(self.folder, name) for name in names)
        shard = StoreShard(start, stop, len(labels), first, second, tuple(unreadable))
        _write(self._record(number), shard)
        return shard

    def finish(self) -> StoreManifest:
        """All shards are there: write the manifest. `UserError` where not one picture can be read."""
        done = self.records()
        missing = len(self.ranges) - len(done)
        if missing:
            raise UserError(f"{self.folder} still lacks {missing} shard(s): run the same command again")
        shards = tuple(done[number] for number in range(len(self.ranges)))
        whole = replace(self.manifest, count=sum(shard.images for shard in shards), shards=shards)
        if not whole.count:
            for number in done:  # they may be repaired
                self._record(number).unlink()
            raise UserError(f"not one picture of {whole.source} can be read: {whole.unreadable[0].problem}")
        _write(self.folder / MANIFEST, whole)
        sync(self.folder)
        self.manifest = whole
        return whole

    def close(self, keep: bool = False) -> None:
        """Give the lock back. A finished store keeps nothing of its making, and one without a single shard nothing at
        all, unless other ranks are still at work (`keep`)."""
        if not self._work.held:
            return
        if (self.folder / MANIFEST).exists():
            shutil.rmtree(self.unfinished)
        elif not keep and not self.records():
            for path in (self.folder / TOKENIZER, self.unfinished, *self.folder.glob("*-[0-9]*.npy")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._work.abandon()
        self._work.release()

    def records(self) -> dict[int, StoreShard]:
        """The shards finished so far, by number. A record that a crash of the machine cut off does not count."""
        found = {}
        for number in range(len(self.ranges)):
            with suppress(UserError):
                found[number] = schema.load(StoreShard, self._record(number))
        return found

    def _check_same(self, stored: StoreManifest) -> None:
        """`UserError` where the store is of other data or settings."""
        if changed := changes(stored.data, self.manifest.data):
            raise UserError(
                f"{self.folder} is made of {stored.source}, which is another data set or has changed since "
                f"({changed}): use a new --out"
            )
        self._work.changed(stored.options, self.manifest.options)

    def _stored(self) -> StoreManifest | None:
        """The manifest of a finished store, or the settings of one in the making."""
        for file in (self.folder / MANIFEST, self.unfinished / SETTINGS):
            if file.exists():
                return parse_manifest(schema.load_json(file), file)
        return None

    def _reopen(self) -> None:
        """Make a finished store, some of whose files are damaged, an unfinished one."""
        stored = self._stored()
        if stored is None or not stored.shards:
            return
        for number, shard in enumerate(stored.shards):
            _write(self._record(number), shard)
        _write(self.unfinished / SETTINGS, replace(stored, count=0, shards=()))
        (self.folder / MANIFEST).unlink()

    def _missing(self, export: Callable[[Path], object], verify: bool, note: Callable[[str], None]) -> list[int]:
        """Numbers of the shards to be made, after damaged files have been found and the tokenizer been exported."""
        stored, records = self._stored(), self.records()
        damaged: set[str] = set()
        if stored is not None:
            self._check_same(stored)  # another process may have begun it before this one took the lock
            self.manifest = stored
            found = replace(stored, shards=tuple(records.values()))
            for file, problem in problems(self.folder, found, verify):
                damaged.add(file.name)
                note(f"warning: {problem}; it is made again")
        if stored is None or any(file.name in damaged for file in stored.tokenizer_files):
            export(self.folder / TOKENIZER)
            names = sorted(path.name for path in (self.folder / TOKENIZER).iterdir())
            files = tuple(file_of(self.folder, f"{TOKENIZER}/{name}") for name in names)
            self.manifest = replace(self.manifest, tokenizer_files=files)
            _write(self.unfinished / SETTINGS, self.manifest)
        for number, shard in records.items():
            if {shard.codes.name, shard.labels.name} & damaged:
                self._record(number).unlink()
        whole = self.records()
        return [number for number in range(len(self.ranges)) if number not in whole]

    def _record(self, number: int) -> Path:
        return self.unfinished / f"shard-{number:05d}.json"


def _write(path: Path, content: StoreManifest | StoreShard) -> None:
    write_text(path, json.dumps(schema.to_dict(content), indent=2) + "\n")
