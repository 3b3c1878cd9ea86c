"""A run folder: its lock, its config, its statistics."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import write_text, writing
from fqgan.base.folder import ResumableFolder, listed_changes
from fqgan.base.printing import say
from fqgan.config.ranges import changeable
from fqgan.engine import checkpoint

_MADE = ("config.json", "stats.jsonl", "wandb-id", "tensorboard", "checkpoints", "images", "wandb")


class RunFolder:
    """`config.json`, `stats.jsonl`, `tensorboard/`, `checkpoints/`, `images/` of one training run."""

    def __init__(self, path: Path, config: Any):
        self.path = path
        self.config = config
        self._stats: IO[str] | None = None
        self._made: list[str] = []
        self._folder = ResumableFolder(path, kind="run folder", option="--run", known=self._known, lock="lock")
        self._folder.check_own()
        changed = {} if self.fresh else self._changes()
        self._changed = {name: list(values) for name, values in changed.items()}

    @property
    def instead(self) -> str:
        """How a new run starts from this one's weights; empty where there is no option for that."""
        return f"--init {self.path} with a new --run starts from these weights" if hasattr(self.config, "init") else ""

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def fresh(self) -> bool:
        """Whether there is nothing to go on with, as before the first checkpoint."""
        return not any(checkpoint.folders(self.checkpoints))

    def _known(self) -> bool:
        """Whether the folder has a training run's config.json. A broken one is refused where there are checkpoints."""
        file = self.path / "config.json"
        if not file.exists():
            if self.fresh:
                return False
            raise UserError(f"--run {self.path} has checkpoints, but no config.json: copy that of its last checkpoint")
        try:
            return {"format_version", "model", "optimizer", "train"} <= schema.load_json(file).keys()
        except UserError:
            if self.fresh:
                return False
            raise

    def _changes(self) -> dict[str, tuple[Any, Any]]:
        """What a resume changes; `UserError` for what it must not."""
        file = self.path / "config.json"
        if other := schema.load_json(file).keys() - {"format_version", "history"} - vars(self.config).keys():
            raise UserError(
                f"--run {self.path} is a run of another kind (its config.json has {min(other)}): use a new one"
            )
        old = schema.load(type(self.config), file)
        advice = f"; {self.instead}" if self.instead else ""
        fixed_since = getattr(self.config, "fixed_since", lambda old: set())
        may_change = changeable(self.config) - fixed_since(old)
        return self._folder.changed(old, self.config, may_change.__contains__, advice)

    def open(self) -> Path | None:
        """Take the lock and return the checkpoint to resume from, if there is one. A new run gets its config."""
        before = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        self._folder.take()
        self._made = [name for name in _MADE if name not in before]
        found = checkpoint.latest(self.checkpoints)
        if not found:
            self._write_config([])
        return found

    def folder(self, name: str) -> Path:
        """Where a task keeps something of its own in an open run; it goes with a run that never begins."""
        if not (self.path / name).exists():
            self._made.append(name)
        return self.path / name

    def resumed(self, step: int) -> None:
        """The checkpoint of `step` is loaded: settings that changed are printed, and kept in config.json's history."""
        history = schema.history(self.path / "config.json")
        if self._changed:
            say(f"changed from now on: {listed_changes(self._changed)}")
            now = datetime.now(UTC).isoformat(timespec="seconds")
            history.append({"step": step, "date": now, "changed": self._changed})
        self._write_config(history)

    def _write_config(self, history: list[Any]) -> None:
        content = schema.to_dict(self.config) | ({"history": history} if history else {})
        write_text(self.path / "config.json", json.dumps(content, indent=2) + "\n")

    def identity(self) -> str:
        """Eight letters that are this run's alone, the same after every resume; kept in `wandb-id`."""
        path = self.path / "wandb-id"
        known = schema.read_text(path).strip() if path.exists() else ""
        if not re.fullmatch(r"[a-z0-9]{8}", known):
            known = secrets.token_hex(4)
            write_text(path, known + "\n")
        return known

    def open_stats(self, step: int) -> None:
        """Continue stats.jsonl after `step`: later lines, of steps that are done again, are dropped. A resume that
        changed settings leaves a line `{"step": ..., "changed": {...}}`."""
        path = self.path / "stats.jsonl"
        lines = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step] if path.exists() else []
        if self._changed and step:
            lines.append(json.dumps({"step": step, "changed": self._changed}) + "\n")
        write_text(path, "".join(lines))
        with writing(path):
            self._stats = path.open("a")

    def log(self, values: dict[str, Any]) -> None:
        """Append one step's values to stats.jsonl."""
        assert self._stats is not None, "open_stats comes first"
        with writing(self.path / "stats.jsonl"):
            self._stats.write(json.dumps(values) + "\n")
            self._stats.flush()

    def abandon(self) -> None:
        """After a refusal: leave nothing of what was made for a run that never began, without checkpoint or statistics.
        What was there before stays."""
        stats = self.path / "stats.jsonl"
        if not self._folder.held or not self.fresh or (stats.exists() and stats.stat().st_size):
            return
        for name in self._made:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        if self._stats is not None:
            self._stats.close()
        self._folder.abandon()

    def close(self) -> None:
        """Give the lock back."""
        if self._stats is not None:
            with suppress(OSError):  # a line that found no room, and was reported, would be written again
                self._stats.close()
        self._folder.release()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a stats.jsonl, but for what a kill cut off or is of something else."""
    lines: list[dict[str, Any]] = []
    for text in schema.read_text(path).splitlines():
        with suppress(UserError):
            line = schema.parse_json(text, path)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


def read_stats(path: Path) -> list[dict[str, Any]]:
    """All lines of statistics of a run's stats.jsonl; `UserError` where it cannot be read."""
    return [line for line in read_lines(path / "stats.jsonl") if "changed" not in line]
