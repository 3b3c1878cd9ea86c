"""Batches made by worker processes: clean errors, no stray signals, and word of what could not be read."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.data.unreadable import NAMED, Note

T = TypeVar("T")
Read = Callable[[Any], tuple[tuple[Any, ...] | None, list[Note]]]
"""Key -> (sample, or None to leave it out; what is to be said of the pictures that were met on the way)."""


class Loaded(NamedTuple):
    """What a worker sends."""

    batch: Any
    """The batch; a `UserError` that ends the reading; or None, when no sample is left of the batch."""
    notes: list[Note]


class Batches(Iterator[T]):
    """Iterator over batches. `close` ends its worker processes, as does the end of the last reference to it."""

    unreadable: int = 0
    """Reads that failed on the way to the batches handed out so far."""
    small: int = 0
    """Pictures below the size, enlarged or skipped, on the same way."""

    def __init__(self, batches: Iterator[Loaded]) -> None:
        self._batches = batches
        # Not left to the loader's iterator: where it goes in a cycle of garbage, the queues to its workers are closed
        # before its last word to them, and at exit multiprocessing would send SIGTERM, which they block, and wait for
        # them without end. This holds the iterator until it has ended them, at the latest at exit.
        self._end = weakref.finalize(self, _end_workers, batches, os.getpid())

    def __next__(self) -> T:
        while True:
            try:
                batch, notes = next(self._batches)
            except (RuntimeError, OSError, EOFError) as error:
                if not _tells_of_a_dead_worker(error):
                    raise
                self.close()
                raise UserError(
                    "a loader process ended without a word, perhaps for lack of memory: fewer workers, or smaller "
                    "batches, need less"
                ) from None
            self.small += sum(note.small for note in notes)
            self.unreadable += sum(not note.small for note in notes)
            _warn([note.text for note in notes if note.text])
            if isinstance(batch, UserError):
                self.close()
                raise batch
            if batch is not None:
                return batch

    def close(self) -> None:
        self._batches = iter(())
        self._end()


_named: set[str] = set()


def _end_workers(batches: Iterator[Loaded], owner: int) -> None:
    if os.getpid() == owner:  # a worker of another loader has a copy, whose processes are not its own
        getattr(batches, "_shutdown_workers", lambda: None)()


def load(read: Read, keys: Iterable[list[Any]], workers: int, pin_memory: bool) -> Batches[Any]:
    """Batches of what `read` gives for lists of keys, in that order, made by `workers` processes that start at once."""
    loader_options: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _begin,
        # a loader without its own generator draws from torch's global one: a resumed run would draw once more
        "generator": torch.Generator(),
    }
    with warnings.catch_warnings(), _signals_blocked():
        # more workers than cores is the user's choice: it helps where storage is slow
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(_Reader(read), batch_sampler=keys, collate_fn=_collate, **loader_options)
        with _child_signals_kept():
            return Batches(iter(loader))


class _Reader(Dataset[Any]):
    """Hands a `UserError` on as a value, since DataLoader would raise it again with a worker's traceback as text."""

    def __init__(self, read: Read) -> None:
        self.read = read

    def __getitem__(self, key: Any) -> tuple[Any, list[Note]]:
        try:
            return self.read(key)
        except UserError as error:
            return error, []


def _collate(outcomes: list[tuple[Any, list[Note]]]) -> Loaded:
    samples = [sample for sample, _ in outcomes if sample is not None]
    errors = (sample for sample in samples if isinstance(sample, UserError))
    batch = next(errors, None) or (tuple(default_collate(samples)) if samples else None)
    return Loaded(batch, [note for _, notes in outcomes for note in notes])


def _warn(unreadable: list[str]) -> None:
    """Name each unreadable picture once, in the process that uses the batches: an epoch later it is met again."""
    for message in unreadable:
        if message in _named or len(_named) > NAMED:
            continue
        _named.add(message)
        text = f"skipped: {message}" if len(_named) <= NAMED else "more pictures are skipped"
        say(f"warning: {text}")


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started in here never see Ctrl-C or SIGTERM, not even while they start. Both reach the whole process
    group, but what follows is the trainer's decision, and it needs its workers to finish the step. Workers notice by
    themselves when it is gone."""
    before = _block_signals()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _block_signals() -> set[Any]:
    return signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def _begin(worker: int) -> None:
    """Start of a worker."""
    _block_signals()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker soon after its parent: one that waits for room in a queue would never look for it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextmanager
def _child_signals_kept() -> Iterator[None]:
    """Torch would have a dead worker raise an error wherever the main thread is, in the middle of an update of weights
    as well. Without that, the next batch tells of it, within five seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _tells_of_a_dead_worker(error: Exception) -> bool:
    """Also where a batch was on its way in shared memory, which went with its worker."""
    if "Caught" in str(error):
        return False
    return "DataLoader worker" in str(error) or isinstance(error, ConnectionError | EOFError | FileNotFoundError)
