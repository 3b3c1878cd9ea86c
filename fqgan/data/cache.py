"""A folder of pieces of remote files that stays below a number of bytes, shared by any number of processes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fqgan.base.errors import UserError

DEFAULT_BYTES = 50 * 10**9
_UNITS = {f"{letter}{i}": (1024 if i else 1000) ** n for n, letter in enumerate(("", *"kmgt")) for i in ("", "i")}
_OPEN = 64  # an open file that was evicted keeps its place on the disk, so not many
_IN_MEMORY = 4
_STALE = 600.0  # seconds after which nobody writes a temporary file any more
_SCAN = 86400.0  # seconds: the count is checked this often, even where nothing has to go
_WAIT = 20.0  # seconds: longer than most fetches
_LOCKS = 1024
_TEMPORARY = re.compile(r"\.(\d+)-.*\.writing")


class Piece:
    """Bytes of the cache: an open file, readable even when its name has been removed, or bytes in memory."""

    def __init__(self, source: int | bytes) -> None:
        self._source = source

    def read(self, size: int, offset: int) -> bytes:
        if isinstance(self._source, bytes):
            return self._source[offset : offset + size]
        # at a place of its own in the file: threads and forked processes share the handle and its position
        return os.pread(self._source, size, offset)

    def __del__(self) -> None:
        if isinstance(self._source, int):
            os.close(self._source)  # here, not when it leaves the list: another thread may be reading


class Cache:
    """Files of `folder`, whose sizes never sum to more than `bound` bytes; the least recently opened go first.

    How much there is stands in a file that is locked while it changes, so that the bound holds for all processes
    together and a file is added without looking at the others. Files appear under their names when they are complete;
    a removed one is simply fetched again. One object belongs to one process.
    """

    def __init__(self, folder: Path, bound: int | None = None) -> None:
        self.folder = folder
        self._root = f"{folder}/"
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Piece] = OrderedDict()
        self._in_memory: OrderedDict[str, Piece] = OrderedDict()
        self.bound = self._default() if bound is None else bound

    def find(self, name: str, size: int) -> Piece | None:
        """A piece of `size` bytes, if it is there; it then counts as used."""
        with self._lock:
            for pieces in (self._open, self._in_memory):
                if name in pieces:
                    pieces.move_to_end(name)
                    return pieces[name]
        try:
            handle = os.open(self._root + name, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
        except OSError:
            return None
        piece, status = Piece(handle), os.fstat(handle)
        if status.st_size != size or not stat.S_ISREG(status.st_mode):
            return None
        with suppress(OSError):
            os.utime(handle)
        return self._remember(self._open, name, piece, _OPEN)

    def forget(self, name: str) -> None:
        """Remove a piece that turned out to be broken."""
        with self._lock:
            self._open.pop(name, None)
        with suppress(OSError):
            os.unlink(self._root + name)

    def keep(self, name: str, data: memoryview) -> None:
        """Add a piece. Where the disk does not take it, the last few are held in memory: reading has to go on."""
        try:
            with self.adding(name, len(data)) as temporary:
                temporary.write_bytes(data)
        except OSError:
            self._remember(self._in_memory, name, Piece(bytes(data)), _IN_MEMORY)

    @contextmanager
    def adding(self, name: str, size: int) -> Iterator[Path]:
        """A temporary name: the `size` bytes that are written there become `name` at the end. OSError where the disk or
        the bound has no room for them."""
        path = self.folder / name
        unique = f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
        temporary = path.with_name(f".{size}-{unique}.writing")
        self._reserve(temporary, size)
        try:
            yield temporary
            with self._state():  # a scan at this moment could miss both names
                temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait while another process fetches this piece: several that begin together would each fetch all. Not for
        long, since nothing goes wrong if two do."""
        try:
            (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / ".locks" / str(zlib.crc32(name.encode()) % _LOCKS), os.O_RDWR | os.O_CREAT)
        except OSError:
            yield
            return
        try:
            deadline = time.monotonic() + _WAIT
            while not _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) and time.monotonic() < deadline:
                time.sleep(0.01)
            yield
        finally:
            _locked(lock, fcntl.LOCK_UN)  # closing is not enough if a child was forked meanwhile
            os.close(lock)

    def _remember(self, pieces: OrderedDict[str, Piece], name: str, piece: Piece, limit: int) -> Piece:
        with self._lock:
            pieces[name] = piece
            while len(pieces) > limit:
                pieces.popitem(last=False)
        return piece

    def _default(self) -> int:
        """The bound where the user names none: half of what there would be without the cache, 50 GB at most."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._state() as state:
                used = _numbers(state)[0]
            return min(DEFAULT_BYTES, (shutil.disk_usage(self.folder).free + used) // 2)
        except OSError:
            return 0

    def _reserve(self, temporary: Path, size: int) -> None:
        """Count a file before it is written, and make room for it."""
        if size > self.bound:
            raise OSError(errno.ENOSPC, "larger than the cache")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._state() as state:
            used, scanned = _numbers(state)
            if used + size > self.bound or not 0 <= time.time() - scanned < _SCAN:
                used, scanned = self._evict(self.bound - size), int(time.time())
            fits = used + size <= self.bound
            os.ftruncate(state, 0)
            os.pwrite(state, f"{used + size * fits} {scanned}".encode(), 0)
            if not fits:
                raise OSError(errno.ENOSPC, "no room in the cache")
            # still under the lock: a scan sees the name, and does not remove the folder in between
            temporary.parent.mkdir(exist_ok=True)
            temporary.touch()

    @contextmanager
    def _state(self) -> Iterator[int]:
        """The open file with the bytes in use and the time of the last scan, locked. File systems without locks exist:
        there the count is less exact."""
        state = os.open(self.folder / ".state", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _locked(state, fcntl.LOCK_EX)
            yield state
        finally:
            _locked(state, fcntl.LOCK_UN)
            os.close(state)

    def _evict(self, limit: int) -> int:
        """Count all files; above `limit` bytes remove old ones, with a tenth to spare. Returns the bytes that stay."""
        files: list[tuple[float, int, str]] = []
        total, now = 0, time.time()
        folders = [entry.path for entry in os.scandir(self.folder) if not entry.name.startswith(".") and entry.is_dir()]
        for entry in (entry for folder in folders for entry in os.scandir(folder)):
            try:
                status = entry.stat()
                temporary = _TEMPORARY.fullmatch(entry.name)
                if temporary and now - status.st_mtime > _STALE:
                    os.unlink(entry.path)  # of a process that was killed
                    continue
            except OSError:
                continue
            size = int(temporary[1]) if temporary else status.st_size
            total += size
            if not temporary:
                files.append((status.st_mtime, size, entry.path))
        if total > limit:
            for _, size, path in sorted(files):
                if total <= limit - self.bound // 10:
                    break
                with suppress(OSError):
                    os.unlink(path)
                    total -= size
        for folder in folders:
            with suppress(OSError):  # most are not empty
                os.rmdir(folder)
        return total


def from_environment() -> Cache:
    """The cache in $FQGAN_CACHE (else ~/.cache/fqgan/remote) of at most $FQGAN_CACHE_BYTES, such as 200G. `UserError`
    for a size that is none."""
    folder = Path(os.environ.get("FQGAN_CACHE") or "~/.cache/fqgan/remote").expanduser()
    text = os.environ.get("FQGAN_CACHE_BYTES")
    return Cache(folder.absolute(), parse_bytes(text) if text else None)


def parse_bytes(text: str) -> int:
    """`50G`, `50GB` (10^9 each), `50GiB` (2^30 each) or a plain number, in bytes; `UserError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?)b?", text.strip().lower())
    if not found:
        raise UserError(f"FQGAN_CACHE_BYTES={text} is no number of bytes: write it as 50G or 50000000000")
    return int(min(float(found[1]) * _UNITS[found[2]], 2.0**62))


def _locked(handle: int, how: int) -> bool:
    """Whether `fcntl.flock` succeeded; also where the file system has no locks."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _numbers(state: int) -> tuple[int, int]:
    """What the state file says; zeros where it is new or broken."""
    try:
        used, scanned = os.pread(state, 100, 0).split()
        return max(0, int(used)), int(scanned)
    except ValueError:
        return 0, 0
