"""Files of object stores and web servers, read at any place through a bounded cache on the local disk."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fqgan.base.errors import UserError
from fqgan.base.files import writing
from fqgan.data.cache import Cache, Piece, from_environment
from fqgan.data.servers import PACKAGES, WEB, Version, ask, fetch, filesystem, scheme, shown, version

BLOCK = 4 * 2**20
"""Bytes that are fetched and kept at a time."""
_RUN = 16  # blocks of one request at most
_SUFFIXES = (".parquet", ".tar")
_caches: dict[tuple[object, ...], Cache] = {}


class RemoteFile(io.RawIOBase):
    """A remote file that is read at any place; `ParquetFile` and `tarfile` take it.

    It is fetched in blocks, which stay in the local cache for all processes. Opening asks the server once, for the
    size. `UserError` in one line where the file is missing, may not be read, or changes while it is read, and where the
    server does not answer, after a few attempts. Works in forked and, pickled, in spawned processes, and `pread` from
    several threads.
    """

    def __init__(self, url: str, known: Version | None = None) -> None:
        super().__init__()
        self.url = url
        self.name = shown(url)
        self.version = known or version(url)
        self.size = self.version.size
        self._key = _key(url, self.version)
        self._position = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.url, self.version, self._position)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        wanted = self.size if size is None or size < 0 else size
        data = self.pread(wanted, self._position)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def pread(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset` on, fewer only at the end of the file. Leaves the position alone."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        end = min(offset + size, self.size)
        pieces: list[bytes | memoryview] = []
        while offset < end:
            pieces.append(self._next(offset, end))
            offset += len(pieces[-1])
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _next(self, offset: int, end: int) -> bytes | memoryview:
        """At least one of the bytes from `offset` to `end`: of one block if it is in the cache, else of all blocks up
        to the next one that is."""
        cache = _cache()
        block, skip = divmod(offset, BLOCK)
        if data := self._kept(cache, block, skip, end - offset):
            return data
        with cache.alone(self._block(block)):
            if data := self._kept(cache, block, skip, end - offset):
                return data  # another process has fetched it meanwhile
            stop = block + 1
            while stop * BLOCK < end and stop < block + _RUN and not self._find(cache, stop):
                stop += 1
            start, body = fetch(self.url, self.version, block * BLOCK, min(stop * BLOCK, self.size))
            view = memoryview(body)
            for place in range(0, len(view), BLOCK):
                cache.keep(self._block((start + place) // BLOCK), view[place : place + BLOCK])
        return view[offset - start : min(end, stop * BLOCK) - start]

    def _kept(self, cache: Cache, block: int, skip: int, size: int) -> bytes:
        """Bytes of one block, if it is in the cache."""
        size = min(size, self._length(block) - skip)
        piece = self._find(cache, block)
        data = piece.read(size, skip) if piece else b""
        if piece and len(data) < size:
            cache.forget(self._block(block))
            return b""
        return data

    def _find(self, cache: Cache, block: int) -> Piece | None:
        return cache.find(self._block(block), self._length(block))

    def _block(self, block: int) -> str:
        return f"{self._key}/{block}"

    def _length(self, block: int) -> int:
        return min(BLOCK, self.size - block * BLOCK)


def is_remote(spec: str | Path) -> bool:
    """Whether this names something that `RemoteFile` and `expand` read, rather than a local path."""
    return "://" in str(spec) and scheme(str(spec)) in PACKAGES


def expand(spec: str) -> list[str]:
    """The remote files that an address names, sorted: itself, the parquet files or tars directly in a folder, or what
    fits a pattern with `*`.

    An address ending in .parquet or .tar is taken as it is; opening tells whether it exists. `UserError` where there is
    no such file, and for folders and patterns on web servers, which have no listing.
    """
    kind, path = scheme(spec), spec.partition("://")[2]
    folder = spec.endswith("/")
    if kind in WEB:
        name = shown(spec)
        if folder or "*" in urlsplit(spec).path:
            raise UserError(
                f"{name}: web servers do not list their files: name each, or a range such as train-{{0000..0099}}.tar"
            )
        return [spec]
    pattern = any(sign in path for sign in "*?[")
    if not pattern and path.endswith(_SUFFIXES):
        return [spec]

    def listing() -> list[str]:
        fs = filesystem(kind)
        if pattern:
            found = [name for name, info in fs.glob(spec, detail=True).items() if info["type"] == "file"]
        else:
            found = [str(info["name"]) for info in fs.ls(spec, detail=True) if info["type"] == "file"]
            if found == [fs._strip_protocol(spec)]:
                return [spec]  # a file
            found = [name for name in found if name.endswith(_SUFFIXES)]
        return [f"{kind}://{name.removeprefix('/')}" for name in sorted(found)]

    files = ask(spec, listing)
    if not files:
        raise UserError(f"{spec}: " + ("no file fits the pattern" if pattern else "no parquet file or tar is in there"))
    if not pattern and len({Path(name).suffix for name in files}) > 1:
        raise UserError(f"{spec} holds parquet files and tars: name one kind, {spec.rstrip('/')}/*.parquet or /*.tar")
    return files


def local_copy(url: str) -> Path:
    """A remote file as a whole in the cache, fetched where it is not yet there.

    Meant for what is mapped into memory, and for small files. The cache may remove the file later; an open one stays
    readable, but ask again instead of keeping the path. `UserError` as for `RemoteFile`, and where the cache or its
    disk has no room for it.
    """
    found, cache = version(url), _cache()
    name = f"{_key(url, found)}/copy-{Path(urlsplit(url).path).name}"
    path = cache.folder / name
    with cache.alone(name):
        if cache.find(name, found.size):
            return path
        if found.size > cache.bound:
            raise UserError(
                f"{shown(url)} has {found.size / 1e9:.1f} GB, and the cache {cache.folder} may hold "
                f"{cache.bound / 1e9:.1f}: set FQGAN_CACHE_BYTES, or FQGAN_CACHE to a larger disk"
            )
        with writing(path), cache.adding(name, found.size) as temporary, temporary.open("wb") as file:
            while (done := file.tell()) < found.size:
                start, body = fetch(url, found, done, min(done + _RUN * BLOCK, found.size))
                file.write(memoryview(body)[done - start :])
    return path


class RemoteFolder:
    """A folder elsewhere: `folder / name` is the local copy of one of its files, fetched where it is not there yet."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __truediv__(self, name: str) -> Path:
        return local_copy(f"{self.url}/{name}")

    def __str__(self) -> str:
        return shown(self.url)

    def linked(self, names: Iterable[str], key: str) -> Path:
        """A local folder, called `key` in the cache, in which links to the local copies of some files stand."""
        place = _cache().folder / "folders" / key
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            for name in names:
                link = place / Path(name).name
                temporary = place / f".{os.getpid()}-{link.name}"
                temporary.symlink_to(self / name)
                temporary.replace(link)
        return place


def _cache() -> Cache:
    """This process's cache, where the environment says."""
    key = os.getpid(), os.environ.get("FQGAN_CACHE"), os.environ.get("FQGAN_CACHE_BYTES")
    if key not in _caches:
        _caches[key] = from_environment()
    return _caches[key]


def _key(url: str, content: Version) -> str:
    """The folder in the cache of one content of a file."""
    text = f"{BLOCK} {url} {content.size} {content.etag or content.modified}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _restored(url: str, known: Version, position: int) -> RemoteFile:
    """An unpickled file: the content that it had, without asking the server."""
    file = RemoteFile(url, known)
    file.seek(position)
    return file
