"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def stopping() -> list[signal.Signals]:
    """The signals that ask for an end: SIGTERM, Ctrl-C, and the closing of the terminal unless nohup ignores it."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGTERM, signal.SIGINT, *hangup]


class Stop:
    """Set by a signal."""

    number: int = 0
    """Of the signal; 0: none so far."""

    def note(self, number: int, frame: FrameType | None) -> None:
        self.number = number


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Within, SIGINT and SIGTERM end nothing: they are noted for whoever asks."""
    stop = Stop()
    previous = {number: signal.signal(number, stop.note) for number in stopping()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
