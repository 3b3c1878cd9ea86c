"""What object stores and web servers answer, through fsspec; what goes wrong as one line."""

from __future__ import annotations

import errno
import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from fqgan.base.errors import UserError, in_one_line

WEB = ("http", "https")
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "memory": "fsspec"}
"""What fsspec needs for each scheme."""
_PAUSES = (0.2, 1.0, 5.0, 15.0)  # seconds between attempts
_CONNECT, _READ = 10.0, 30.0  # seconds without any progress
_S3 = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true"
_GS = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
_CREDENTIALS = {"s3": _S3, "gs": _GS, "gcs": _GS}
_LIBRARIES = ("aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "google", "s3fs")
# marks of a content in what fsspec's file systems tell about a file
_ETAGS = ("generation", "ETag", "etag")
_TIMES = ("LastModified", "Last-Modified", "mtime", "updated", "created")
_Result = TypeVar("_Result")


class Version(NamedTuple):
    """What tells one content of a remote file from another."""

    size: int
    etag: str
    modified: str

    def differs(self, other: Version) -> bool:
        """Servers leave out one or the other mark in some answers."""
        marks = zip(self[1:], other[1:], strict=True)
        return self.size != other.size or any(a and b and a != b for a, b in marks)


class _Again(OSError):
    """Something that may go better the next time."""


def version(url: str) -> Version:
    """Size and marks of a file; `UserError` where it cannot be had."""
    return ask(url, lambda: _version(url), 1)


def fetch(url: str, known: Version, start: int, end: int) -> tuple[int, bytes]:
    """The bytes from `start` to `end`, behind the place of the first one: servers that know no ranges send the whole
    file. A body that is cut short is asked for again. `UserError` where that does not help, and where the file is
    another than `known`."""

    def attempt() -> tuple[int, bytes]:
        first, body, now = _web(url, start, end, True) if scheme(url) in WEB else _stored(url, start, end)
        if now.differs(known):
            raise UserError(f"{shown(url)} has changed since it was opened: start again")
        if first + len(body) not in (end, known.size):
            raise _Again(f"the server sent {len(body)} bytes of {end - start}")
        return first, body

    return ask(url, attempt)


def ask(url: str, call: Callable[[], _Result], most: int | None = None) -> _Result:
    """The result of a call, repeated a few times (`most` at most) where that may help. `UserError` with what is wrong
    and what to do about it, in one line."""
    for pause in (*_PAUSES[:most], None):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            reason, again = _explain(error, url)
            if not reason:
                raise
            if not again or pause is None:
                raise UserError(f"{shown(url)} {reason}") from None
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def scheme(url: str) -> str:
    return url.partition("://")[0]


def shown(url: str) -> str:
    """An address for messages: without passwords and signatures."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UserError(f"{url.partition('?')[0].rpartition('@')[2][:100]!r} is no address") from None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


_filesystems: dict[tuple[int, str], Any] = {}


def filesystem(name: str) -> Any:
    """fsspec's file system of a scheme, one for each process: their threads do not outlive a fork."""
    key = os.getpid(), name
    if key not in _filesystems:
        # gcsfs would ask over gRPC what kind of bucket it is: up to a minute where that is shut, and not fork-safe
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            importlib.import_module(PACKAGES[name])
            import fsspec
        except ImportError as error:
            raise UserError(f"{name}:// needs the package {error.name}: pip install 'fqgan[remote]'") from None
        options: dict[str, Any] = {"requests_timeout": _READ} if name in ("gs", "gcs") else {}
        if name in WEB:
            from aiohttp import ClientTimeout

            limits = ClientTimeout(total=None, connect=_CONNECT, sock_read=_READ)
            options = {"client_kwargs": {"timeout": limits, "trust_env": True}}
        if name == "s3":
            limits = {"connect_timeout": _CONNECT, "read_timeout": _READ, "retries": {"max_attempts": 1}}
            options = {"config_kwargs": limits}
        made = fsspec.filesystem(name, skip_instance_cache=True, use_listings_cache=False, **options)
        if name == "s3":
            made.retries = 1  # `ask` repeats
        _filesystems[key] = made
    return _filesystems[key]


def _version(url: str) -> Version:
    if scheme(url) in WEB:
        return _web(url, 0, 1, False)[2]
    return _described(filesystem(scheme(url)).info(url))


def _stored(url: str, start: int, end: int) -> tuple[int, bytes, Version]:
    """A range of a file of an object store. Asking for the version afterwards makes sure whose bytes they are."""
    stored = filesystem(scheme(url))
    body = stored.cat_file(url, start=start, end=end)
    return start, body, _described(stored.info(url))


def _described(info: Mapping[str, Any]) -> Version:
    if info["type"] != "file":
        raise IsADirectoryError
    etag, modified = (next((str(info[key]) for key in keys if info.get(key)), "") for keys in (_ETAGS, _TIMES))
    return Version(int(info["size"]), etag, modified)


def _web(url: str, start: int, end: int, body: bool) -> tuple[int, bytes, Version]:
    """(place of the first byte, the bytes if `body`, version) from a web server. The version is that of the same
    answer; HEAD is refused for signed addresses."""
    web = filesystem(scheme(url))  # tells of missing packages
    from fsspec.asyn import sync
    from yarl import URL

    async def get() -> tuple[int, Mapping[str, str], bytes]:
        session = await web.set_session()
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        async with session.get(URL(url, encoded="%" in url), headers=headers) as answer:
            if answer.status != 416:
                answer.raise_for_status()
            return answer.status, answer.headers, await answer.read() if body else b""

    answer: Any = sync(web.loop, get)
    status, headers, content = answer
    place, _, size = headers.get("Content-Range", "").removeprefix("bytes").strip().partition("/")
    if status == 200:
        size, first = headers.get("Content-Length", str(len(content)) if body else ""), 0
    elif status == 416:  # of an empty file, or of one that is shorter now
        first, content = start, b""
    else:
        first = int(place.partition("-")[0] or -1)
        if first != start:
            raise _Again(f"the server sent other bytes than it was asked for ({in_one_line(Exception(place))})")
    if not size.isdecimal() or headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(
            f"{shown(url)}: the server does not tell how long the file is, so that it cannot be read in parts"
        )
    etag = headers.get("ETag", "").removeprefix("W/")
    return first, content, Version(int(size), etag, headers.get("Last-Modified", ""))


def _explain(error: Exception, url: str) -> tuple[str, bool]:
    """(what is wrong, whether it may pass); nothing for what looks like a bug of ours."""
    kind, library = type(error).__name__, type(error).__module__.partition(".")[0]
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file", False
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "does not exist: check the address (and, for a private one, who may list it)", False
    refused = isinstance(error, PermissionError) or status in (401, 403) or str(error).startswith("Forbidden")  # gcsfs
    if refused or "Credentials" in kind or kind == "RefreshError":
        hint = _CREDENTIALS.get(scheme(url), "its address may lack a login, or a signature that is still valid")
        return f"may not be read ({in_one_line(error)}): {hint}", False
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return f"gave no answer within {_READ:.0f} s: check the network and the address", True
    if kind in ("ClientConnectorDNSError", "gaierror"):
        return "cannot be reached: the host's name is not known", True
    if isinstance(error, ConnectionError) or kind in ("ClientConnectorError", "EndpointConnectionError"):
        return f"cannot be reached: {in_one_line(error)}", True
    if isinstance(status, int) and status < 500 and status not in (408, 429):
        return f"was refused by the server: {in_one_line(error)}", False
    if isinstance(error, OSError) or library in _LIBRARIES:
        final = getattr(error, "errno", None) == errno.EINVAL or "Certificate" in kind
        return f"cannot be read: {in_one_line(error)}", not final
    return (f"cannot be read: {in_one_line(error)}", False) if isinstance(error, ValueError) else ("", False)
