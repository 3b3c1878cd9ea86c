"""What stops a run before its end: signals, and errors, agreed upon by all ranks and told so that a user can act."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from torch.distributed import DistError

from fqgan.base.errors import UserError, in_one_line, missing_operator, out_of_memory
from fqgan.engine import distributed

T = TypeVar("T")


def stopping() -> list[signal.Signals]:
    """The signals that ask for an end: SIGTERM, Ctrl-C, and the closing of the terminal unless nohup ignores it."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []
    return [signal.SIGTERM, signal.SIGINT, *hangup]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None], numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Within, `handler` hears of these signals."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


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
    with handling(stop.note, stopping()):
        yield stop


class StoppedError(Exception):
    """All ranks stop at the same point, where a checkpoint can be written together.

    Args:
        error: what happened to this rank; None where it happened to another one.
    """

    def __init__(self, error: Exception | None):
        super().__init__(str(error))
        self.error = error


def together(action: Callable[[], T]) -> T:
    """What `action` gives. Where it fails on any rank, all of them raise `StoppedError`.

    Nothing in `action` may wait for other ranks after it could have failed on this one.
    """
    error, result = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    if distributed.agree(int(error is not None)):
        raise StoppedError(error) from error
    return result  # pyright: ignore[reportReturnType]


class Agreed(Iterator[T]):
    """Batches of this rank, whose error waits for `check`: until then other ranks count on this one.

    A single process stops at once.
    """

    def __init__(self, batches: Iterator[T]):
        self._batches = batches
        self._error: UserError | None = None

    def __next__(self) -> T:
        try:
            return next(self._batches)
        except UserError as error:
            self.hold(error)
            raise StopIteration from None

    def hold(self, error: UserError) -> None:
        """Keep an error for `check`."""
        if not distributed.is_distributed():
            raise error
        self._error = error

    def check(self) -> None:
        """`StoppedError` on all ranks where one of them had an error; called by all of them."""
        if distributed.agree(int(self._error is not None)):
            raise StoppedError(self._error)


def in_words(error: Exception) -> Exception:
    """The `UserError` that stands for too little memory, a missing operator or a lost rank; others as they are."""
    text = str(error)
    if missing := missing_operator(error):
        return UserError(missing)
    if out_of_memory(error):
        return UserError(
            f"out of memory ({in_one_line(error)}): a smaller --train.micro-batch makes the same batch in parts, "
            "activation checkpointing needs less for them"
        )
    if isinstance(error, DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)):
        return UserError(f"another rank was lost ({in_one_line(error)}); its own lines say why")
    return error
