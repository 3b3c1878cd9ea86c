"""The page while its command is under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from torch import nn

from fqgan.base.files import write_text
from fqgan.base.printing import say
from fqgan.engine.task import Watch
from fqgan.lab.report.content import Report
from fqgan.lab.report.render import page

FIRST = 20.0
"""Seconds of training before the first page: earlier pictures show little."""
SHARE = 1 / 60
"""Of training's time, what its pages may take at most, but for the first and the last one."""


class GrowingPage:
    """A page that is written when there are first pictures, and again whenever there is more.

    Args:
        command: how the command was called, for the page.
    """

    def __init__(self, path: Path, command: str):
        self.path, self.command = path, command
        self._began, self._told = time.monotonic(), False
        self._next: float | None = None

    def write(self, report: Report) -> Report:
        """Replace the page, in one step, and return what it says. The first that is not the last is announced."""
        now = time.monotonic()
        doing = report.doing and f"{report.doing}, at {datetime.now():%H:%M}"
        told = replace(report, doing=doing, command=self.command, command_seconds=now - self._began)
        write_text(self.path, page(told))
        if doing and not self._told:
            say(f"first pictures: {self.path}, a page that grows until the command ends")
            self._told = True
        return told

    def watch(self, make: Callable[[nn.Module, int], Report], last: int) -> Watch:
        """For training: writes the page that `make` makes of a network and its number of steps, once in a while and
        after the `last` step."""

        def look(model: nn.Module, step: int) -> None:
            began = time.monotonic()
            if self._next is None:
                self._next = began + FIRST
            if began >= self._next or step == last:
                self.write(make(model, step))
                now = time.monotonic()
                self._next = now + (now - began) / SHARE

        return look
