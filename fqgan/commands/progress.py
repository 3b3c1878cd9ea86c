"""A bar that counts images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def image_bar(label: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Hands out advance(images). The bar shows rate and remaining time, on a terminal only, and goes in the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), transient=True, disable=not sys.stdout.isatty()) as bar:
        row = bar.add_task("", total=total, completed=done, rate="")

        def advance(images: int) -> None:
            bar.advance(row, images)
            speed = bar.tasks[row].speed  # None until there are two points in time
            bar.update(row, rate=f"{speed:.1f} images/s" if speed else "")

        yield advance
