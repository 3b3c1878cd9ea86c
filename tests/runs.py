"""Training runs in processes of their own, and what they leave behind."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import finish, start, wait_for
from safetensors.torch import load_file

from fqgan.base import schema
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.engine.run import read_stats

STEPS = 6
TRAINING: dict[str, Any] = {
    "batch": 8,
    "micro_batch": 4,
    "steps": STEPS,
    "ema_decay": 0.9,
    "log_every": 1,
    "checkpoint_every": 3,
    "keep_last": 3,
    "precision": "float32",
    "device": "cpu",
}
"""Accumulation and a moving average, and checkpoints at half time and at the end."""


def command(config: TokenizerRunConfig | GeneratorRunConfig, run: Path, *options: str) -> list[str]:
    """The training of a config, which the command reads from a file beside the run."""
    file = run.with_suffix(".config.json")
    schema.save(config, file)
    verb = "train-tokenizer photos-dual" if isinstance(config, TokenizerRunConfig) else "train-generator far-tiny"
    return [*verb.split(), "--config", str(file), "--run", str(run), *options]


def contents(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def lines(run: Path) -> list[dict[str, float]]:
    """stats.jsonl but for the speed."""
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_stats(run)]


def assert_same(run: Path, other: Path) -> None:
    a, b = contents(run, STEPS), contents(other, STEPS)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
    assert lines(run) == lines(other)


def assert_alike(run: Path, other: Path) -> None:
    """The same statistics up to the rounding of float64, in which both were trained."""
    for one, two in zip(lines(run), lines(other), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (name, one["step"])


def killed_and_resumed(arguments: list[str], run: Path, after: str) -> None:
    """Kill a run at a random moment after a checkpoint, then let it end."""
    process = start(arguments)
    wait_for(run / "checkpoints" / after, process)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    process.communicate()
    output = finish(start(arguments))
    assert "resuming" in output or "already done" in output


def stopped_by(number: signal.Signals, arguments: list[str], run: Path, code: str = "") -> None:
    """Send a signal after the first step: the run must save, once, and stop."""
    process = start(arguments, code)
    wait_for(run / "stats.jsonl", process)
    while not (run / "stats.jsonl").read_text():
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, output
    done = sorted((run / "checkpoints").glob("step-*"))
    assert len(done) == 1 and "the same command resumes" in output
