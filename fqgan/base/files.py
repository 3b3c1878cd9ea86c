"""Files that are written whole or not at all, in one line why they could not be, and lock files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fqgan.base.errors import UserError, in_one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
SURROUNDINGS = (
    *_FULL,
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE),
)
"""Numbers of errors that are neither a bug nor a user's typing mistake, but how the machine is."""
WRITING = ".writing"
"""End of the hidden names of what is being written."""
# file systems without locks: better no lock than no run
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)


class UnwritableError(UserError):
    """A file or folder that cannot be written: a full disk, a read-only one, or no permission."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails in here because of the disk raises `UnwritableError`, which names `path` and the reason."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        raise UnwritableError(f"{path} cannot be written: {reason(number)}") from None


@contextmanager
def reading(name: Path | str, form: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Whatever fails in here becomes `kind`: `name` cannot be read, or not as `form`, and why, in one line. For calls
    of a library alone: the errors that its parsers raise on broken content are countless."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{name} cannot be read: {error.strerror or os.strerror(error.errno)}") from None
        reason = in_one_line(error)
        raise kind(f"{name} cannot be read as {form} (cut short, or another format?): {reason}") from None


def check_file(path: Path, longest: int | None = None) -> int:
    """The bytes of a file. `UserError` where it is missing, no regular file (the other end of a pipe would be waited
    for, a device may never end), or has more than `longest` bytes."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL, or half a character
        raise UserError(f"{str(path)!r} is no name of a file") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no file")
    if longest is not None and status.st_size > longest:
        raise UserError(f"{path} has {status.st_size:,} bytes: no file of fqgan")
    return status.st_size


def is_name(text: object) -> bool:
    """Whether it is the plain name of a file in some folder: no path, nothing that the system refuses."""
    return isinstance(text, str) and text not in ("", "..") and is_path(text) and Path(text).name == text


def is_path(text: str) -> bool:
    """Whether the system takes it for a path: no NUL, no half characters of JSON."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def reason(number: int) -> str:
    """What an error number of the system says, and what helps."""
    return os.strerror(number) + (": free some space" if number in _FULL else "")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`. What is written there becomes `path` at the end; after an error it is removed."""
    temporary = path.with_name(f".{path.name}{WRITING}")
    try:
        with writing(path):
            yield temporary
            temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which must not exist, or be empty. What is written there becomes `path` at the
    end; after an error it is removed."""
    temporary = path.with_name(f".{path.name}{WRITING}")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        with writing(path):
            yield temporary
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard(folder: Path) -> None:
    """Delete a folder, if it is there. A kill on the way leaves nothing under its name."""
    doomed = folder.with_name(f".{folder.name}.discarded")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        with writing(folder):
            folder.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content in one step; `UnwritableError` where that fails."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text in one step; `UnwritableError` where that fails."""
    write_bytes(path, text.encode())


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are missing; `UnwritableError` where that fails."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(path: Path) -> IO[str]:
    """The open lock file `path`, held until it is closed. BlockingIOError where another process holds it,
    `UnwritableError` where the file cannot be made."""
    import fcntl  # not there on Windows, where the command line has a sentence to say first

    with writing(path):
        handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            handle.close()
            raise
    # a forked child shares the lock: the workers of a killed process would hold it for seconds
    held = weakref.ref(handle)
    os.register_at_fork(after_in_child=lambda: _close(held()))
    return handle


def _close(handle: IO[str] | None) -> None:
    if handle is not None:
        handle.close()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _number(error: Exception) -> int | None:
    """The system's error number. Libraries in Rust have it in the text only."""
    if isinstance(error, OSError):
        # numpy tells of a short write, which is a full disk, without a number
        short = error.errno is None and re.search(r"\d+ requested and \d+ written", str(error))
        return errno.ENOSPC if short else error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
