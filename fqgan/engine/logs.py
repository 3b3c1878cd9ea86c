"""Progress and statistics: a bar or lines on the terminal, stats.jsonl, TensorBoard, W&B if asked for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from fqgan.base import schema
from fqgan.base.errors import UserError, in_one_line
from fqgan.base.files import writing
from fqgan.base.printing import in_plain, say
from fqgan.base.progress import elapsed
from fqgan.config import TrainConfig
from fqgan.engine.distributed import World
from fqgan.engine.run import RunFolder


class Log:
    """The main rank's reporting; on other ranks every call does nothing. Lines on the terminal have the values of
    these names, `shown`, alone."""

    def __init__(self, run: RunFolder, world: World, start: int, steps: int, config: TrainConfig, shown: Sequence[str]):
        self.shown = shown
        self.active, self.steps, self.batch = world.is_main, steps, config.batch
        self.run = run
        self._done, self._first, self._began = start, start, time.monotonic()
        self._marked, self._marked_at = start, self._began
        self._bar: Progress | None = None
        if not self.active:
            return
        run.open_stats(start)
        # imported late: it is slow, and only training needs it
        from torch.utils.tensorboard.writer import SummaryWriter

        self._hook, threading.excepthook = threading.excepthook, self._without_write_errors
        self._board_path = run.path / "tensorboard"
        with writing(self._board_path):
            self._board = SummaryWriter(self._board_path, purge_step=start + 1)
        self._wandb = _wandb(config.wandb, run) if config.wandb else None
        if sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console())
            self._bar.start()
            self._row = self._bar.add_task("training", total=steps, completed=start, rate="")

    def advance(self) -> None:
        """One step is done."""
        self._done += 1
        if self._bar:
            self._bar.update(self._row, completed=self._done, rate=f"{self._images_per_second(False):.1f} images/s")

    def note(self, text: str) -> None:
        """Say something beside the progress."""
        if not self.active:
            return
        if self._bar:
            self._bar.console.print(Text(in_plain(text)))
        elif not text.startswith("validating"):
            say(text)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Record one step's statistics."""
        if not self.active:
            return
        rate = self._images_per_second(True)
        self.run.log({"step": step, **values, "images_per_second": round(rate, 2)})
        with writing(self._board_path):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in self.shown if name in values)
        left = (time.monotonic() - self._began) / max(1, self._done - self._first) * (self.steps - self._done)
        self.note(f"step {step}/{self.steps}  {shown}  {rate:.1f} images/s  ETA {elapsed(left)}")

    def close(self) -> None:
        """Flush and end the bar."""
        if not self.active:
            return
        with suppress(OSError):  # stats.jsonl holds the same numbers
            self._board.close()
        threading.excepthook = self._hook
        if self._wandb:
            self._wandb.finish()
        if self._bar:
            self._bar.stop()

    def _without_write_errors(self, error: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread keeps a write error for the next call, which raises it: no traceback beside that."""
        if not isinstance(error.exc_value, OSError):
            self._hook(error)

    def _images_per_second(self, mark: bool) -> float:
        """Rate since the last mark."""
        now = time.monotonic()
        rate = (self._done - self._marked) * self.batch / max(1e-9, now - self._marked_at)
        if mark:
            self._marked, self._marked_at = self._done, now
        return rate


def load_wandb() -> Any:
    """The package; `UserError` where it is not installed."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("train.wandb needs the package wandb: pip install wandb, or leave train.wandb empty") from None
    return wandb


def _wandb(project: str, run: RunFolder) -> Any:
    init = load_wandb().init
    settings = {"project": project, "name": run.path.name, "id": run.identity(), "dir": str(run.path)}
    settings |= {"config": schema.to_dict(run.config), "allow_val_change": True, "resume": "allow"}
    try:
        return init(**settings)
    except Exception as error:  # of many kinds: no key, no network, a name that it does not take
        raise UserError(f"W&B does not start ({in_one_line(error)}): WANDB_MODE=offline needs no account") from None
