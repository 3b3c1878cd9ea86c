"""The folder of a study: one process at a time fills it, and the same command resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fqgan.base.folder import ResumableFolder

_HOLDS = ("rows", "measured", "table.md")


@contextmanager
def study_folder(path: Path) -> Iterator[None]:
    """Hold a study's folder: what it has is reused where settings and inputs are the same. `UserError` where another
    process fills it, and for a folder of something else."""
    folder = ResumableFolder(
        path, kind="folder of a study", known=lambda: any((path / name).exists() for name in _HOLDS)
    )
    folder.take()
    try:
        yield
    except BaseException:
        folder.abandon()
        raise
    folder.release(finished=True)
