"""What is printed: a line that any terminal can show, on streams whose failure ends no work."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def say(text: object, *, error: bool = False) -> None:
    """Print a line at once, on standard output or error. Names in it may hold line breaks, escape sequences or bytes of
    no encoding."""
    print(in_plain(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def say_lines(text: str) -> None:
    """Print a text of several lines."""
    for line in text.splitlines():
        say(line)


def refuse(message: str) -> int:
    """Print a user's error as one line on standard error; returns the exit status of such."""
    line = " ".join(part.strip() for part in message.splitlines())
    say(f"fqgan: error: {line}", error=True)
    return 2


def in_plain(text: str) -> str:
    """The text with all that is not printable as an escape."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def steady_streams() -> None:
    """From now on what standard output and error cannot show is escaped, and a closed pipe or full disk behind them
    ends nothing: long work goes on in silence."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _Steady):
            continue
        if stream is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            continue
        with suppress(AttributeError, ValueError, OSError):  # not a stream of text on a file, as in tests
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Steady(stream))


class _Steady:
    """A stream that keeps silent after a write error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._broken = stream, False

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Any) -> None:
        if self._broken:
            return
        try:
            action()
        except (OSError, ValueError):  # ValueError: of a closed file
            self._broken = True
            with suppress(OSError, ValueError):  # what is buffered would fail again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
