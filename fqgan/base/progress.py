"""A bar that counts images, and sizes in words."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fqgan.base.printing import say

LINE_SECONDS = 30.0
"""Between two lines of progress where there is no terminal for a bar."""


@contextmanager
def image_bar(
    label: str, total: int, done: int = 0, shown: bool = True, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Hands out advance(images), or of what else `unit` names. On a terminal a bar shows rate and remaining time, and
    goes in the end; elsewhere a line does, every half minute. Nothing unless `shown`."""
    if not shown:
        yield lambda images: None
        return
    if not sys.stdout.isatty():
        yield _lines(label, total, done, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), transient=True) as bar:
        row = bar.add_task("", total=total, completed=done, rate="")

        def advance(images: int) -> None:
            bar.advance(row, images)
            speed = bar.tasks[row].speed  # None until there are two points in time
            bar.update(row, rate=f"{speed:.1f} {unit}/s" if speed else "")

        yield advance


def _lines(label: str, total: int, done: int, unit: str) -> Callable[[int], None]:
    """advance(images) that prints a line now and then."""
    began = shown = time.monotonic()
    first = done

    def advance(images: int) -> None:
        nonlocal done, shown
        done += images
        now = time.monotonic()
        if now - shown >= LINE_SECONDS:
            shown, rate = now, (done - first) / (now - began)
            left = elapsed((total - done) / rate)
            say(f"{label}: {done:,}/{total:,} {unit}  {rate:.1f} {unit}/s  ETA {left}")

    return advance


def readable_bytes(count: float) -> str:
    """`0.13 GB`, `12.00 MB` or `4.1 kB`."""
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def elapsed(seconds: float) -> str:
    """`1:02:03` or `02:03`; days as hours."""
    hours, rest = divmod(int(max(0, seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"
