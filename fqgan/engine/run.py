"""A run folder: its lock, its config, its statistics."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fqgan import schema
from fqgan.engine import checkpoint
from fqgan.errors import UserError
from fqgan.files import UnwritableError, lock, make_folder, write_text, writing

# what a resumed run may change: how long, where and how it is watched, but nothing that it computes
CHANGEABLE = {
    "data",  # of a generator: where its token store is; its content is compared
    "data.max_unreadable",
    "data.small",
    "data.workers",
    "tokenizer",
    "train.activation_checkpointing",
    "train.checkpoint_every",
    "train.device",
    "train.epochs",
    "train.fsdp",  # where weights lie, as the number of ranks
    "train.image_every",
    "train.keep_last",
    "train.log_every",
    "train.micro_batch",
    "train.sample_images",
    "train.steps",
    "train.validate_every",
    "train.validation_images",
    "train.wandb",
}
PICTURES = "sampling."
"""Settings that pictures alone depend on."""


class RunFolder:
    """`config.json`, `stats.jsonl`, `tensorboard/`, `checkpoints/`, `images/` of one training run."""

    def __init__(self, path: Path, config: Any):
        self.path = path
        self.config = config
        self._lock: IO[str] | None = None
        self._stats: IO[str] | None = None
        if path.exists() and not path.is_dir():
            raise UserError(f"--run {path} is a file, not a folder")
        if path.is_dir() and any(path.iterdir()) and not ((path / "lock").exists() or self.checkpoints.is_dir()):
            raise UserError(f"--run {path} exists and is no run folder: choose another name")
        if not self.fresh:
            self._check_unchanged()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def fresh(self) -> bool:
        """Whether there is nothing to go on with, as before the first checkpoint."""
        return not any(self.checkpoints.glob("step-*"))

    def _check_unchanged(self) -> None:
        old = schema.load(type(self.config), self.path / "config.json")
        changed = {
            k: v for k, v in schema.diff(old, self.config).items() if k not in CHANGEABLE and not k.startswith(PICTURES)
        }
        if changed:
            changes = ", ".join(f"{key}: {before!r} -> {after!r}" for key, (before, after) in changed.items())
            raise UserError(f"{self.path} was started with other settings ({changes}): restore them or use a new --run")

    def open(self) -> Path | None:
        """Take the lock, write the config, and return the checkpoint to resume from, if there is one."""
        try:
            make_folder(self.path)
            self._lock = lock(self.path / "lock")
        except UnwritableError as error:
            raise UserError(f"--run {error}") from None
        except BlockingIOError:
            raise UserError(f"{self.path} is in use by another process: wait for it or use a new --run") from None
        found = checkpoint.latest(self.checkpoints)
        write_text(self.path / "config.json", json.dumps(schema.to_dict(self.config), indent=2) + "\n")
        return found

    def open_stats(self, step: int) -> None:
        """Continue stats.jsonl after `step`: later lines, of steps that are done again, are dropped."""
        path = self.path / "stats.jsonl"
        lines = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        lines.append(line + "\n")
                except (ValueError, KeyError):
                    break  # a line that a kill cut off; nothing after it counts
        write_text(path, "".join(lines))
        with writing(path):
            self._stats = path.open("a")

    def log(self, values: dict[str, Any]) -> None:
        """Append one step's values to stats.jsonl."""
        assert self._stats is not None, "open_stats comes first"
        with writing(self.path / "stats.jsonl"):
            self._stats.write(json.dumps(values) + "\n")
            self._stats.flush()

    def close(self) -> None:
        """Give the lock back."""
        for handle in (self._stats, self._lock):
            if handle is not None:
                with suppress(OSError):  # a line that found no room, and was told, would be written again
                    handle.close()


def read_stats(path: Path) -> list[dict[str, Any]]:
    """All lines of a run's stats.jsonl."""
    return [json.loads(line) for line in (path / "stats.jsonl").read_text().splitlines()]
