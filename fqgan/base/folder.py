"""A folder that is made with interruptions: whose it is, who is at it, and with which settings it goes on.

Run folders, token stores, packed sets, generated pictures, feature banks, studies and the quickstart stand on it, so
that each rule is written once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import WRITING, UnwritableError, lock, make_folder

_LOCKS = (".lock", "lock", ".*unfinished/lock")


class ResumableFolder:
    """The folder that an option names.

    Args:
        path: the folder; it may be missing.
        kind: what it holds, as in "is no run folder".
        option: that names it.
        known: whether the folder's content is of this kind; asked where something is there. Errors of what it reads
            are the user's to see.
        lock: the lock file's name; a relative path.
        beside: names that may be there, empty, before anything is known, as after a kill at the very start.
    """

    def __init__(
        self,
        path: Path,
        *,
        kind: str,
        known: Callable[[], bool],
        option: str = "--out",
        lock: str = ".lock",
        beside: Collection[str] = (),
    ) -> None:
        self.path, self.kind, self.option = path, kind, option
        self._known, self._lock_name, self._beside = known, lock, {*Path(lock).parts, *beside}
        self._held: IO[str] | None = None
        self._made = False

    def check_own(self) -> None:
        """`UserError` for a file, and for a folder that holds something else. Nothing is touched."""
        try:
            str(self.path).encode()  # TensorBoard and others write no other names
            if not self.path.exists() and not self.path.is_symlink():
                return
            if not self.path.is_dir():
                raise UserError(f"{self.option} {self.path} is a file, not a folder")
            names = list(self.path.iterdir())
        except OSError as error:
            raise UserError(f"{self.option} {self.path} cannot be read: {error.strerror}") from None
        except UnicodeEncodeError:
            raise UserError(f"{self.option} {self.path} is no name in UTF-8: choose another one") from None
        if self._known() or all(_is_empty(path, self._beside) for path in names):
            return
        raise UserError(f"{self.option} {self.path} exists and is no {self.kind}: choose another name")

    def take(self) -> None:
        """Make the folder and take its lock; what a kill left half-written is removed. `UserError` where another
        process holds it or nothing can be written."""
        self.check_own()
        path, self._made = self.path / self._lock_name, not self.path.exists()
        try:
            make_folder(path.parent)
            self._held = lock(path)
        except UnwritableError as error:
            raise UserError(f"{self.option} {error}") from None
        except BlockingIOError:
            raise UserError(
                f"{self.path} is in use by another process: wait for it, or choose another {self.option}"
            ) from None
        for stale in _half_written(self.path):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._held is not None

    def release(self, *, finished: bool = False) -> None:
        """Give the lock back; a `finished` folder keeps no lock file."""
        if self._held is None:
            return
        if finished:
            (self.path / self._lock_name).unlink(missing_ok=True)
        self._held.close()
        self._held = None

    def abandon(self) -> None:
        """Give the lock back, and leave no empty folder where there was none before."""
        self.release(finished=True)
        lock = (self.path / self._lock_name).parent
        for folder in [lock] * (lock != self.path) + [self.path] * self._made:
            with suppress(OSError):  # something is in it
                folder.rmdir()

    def changed(
        self, old: Any, new: Any, may_change: Callable[[str], bool] = lambda name: False, advice: str = ""
    ) -> dict[str, tuple[Any, Any]]:
        """What has changed of what may: dotted name -> (before, now). `UserError` names what must not.

        Args:
            old, new: settings, as dataclasses or dicts in their form.
            advice: what to do, beside restoring them.
        """
        found = schema.diff(old, new)
        if fixed := {name: values for name, values in found.items() if not may_change(name)}:
            listed = listed_changes(fixed)
            raise UserError(
                f"{self.path} was begun with other settings ({listed}): restore them or use a new {self.option}{advice}"
            )
        return found


def listed_changes(changes: Mapping[str, Sequence[Any]]) -> str:
    """`name: before -> now, ...`; long values and fingerprints are cut."""
    return ", ".join(f"{name}: {_short(before)} -> {_short(now)}" for name, (before, now) in changes.items())


def _short(value: Any) -> str:
    text = repr(value[:12] if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _half_written(folder: Path) -> Iterator[Path]:
    """What a kill left under a name of `fqgan.base.files`; not in a folder within that has a lock of its own."""
    for path in list(folder.iterdir()):
        if path.name.startswith(".") and path.name.endswith(WRITING):
            yield path
        elif path.is_dir() and not path.is_symlink() and not any(any(path.glob(name)) for name in _LOCKS):
            yield from _half_written(path)


def _is_empty(path: Path, known: Collection[str]) -> bool:
    """Of a file without content, or a folder of nothing but such: what a kill at the very start leaves."""
    if path.name.endswith(WRITING):
        return True
    if path.name not in known:
        return False
    if path.is_dir():
        return all(_is_empty(each, known) for each in path.iterdir())
    return path.is_file() and not path.stat().st_size
