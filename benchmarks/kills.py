"""SIGKILL at random moments of short trainings: does every resumed run end as the uninterrupted one, bit for bit?

python benchmarks/kills.py [--runs 100] [--steps 9] [--seed 0] [--keep FOLDER]

A tiny tokenizer with everything on: GAN, entropy, InfoNCE, moving average, augmentation, dropout, accumulation over two
micro-batches, two loader workers, validation. Every run is killed once to three times and started again at once by the
same command, until it is through. Three in four kills fall at a moment drawn evenly from the CPU time of a whole run
(of the main thread: wall time says little where others work on the machine, too), the fourth while a checkpoint is
written.
Weights, optimizers, moving averages, meters, lines of statistics and pictures are compared with those of a run that
nobody killed. The processes are forked from one that has imported everything, so that a start costs no seconds. Linux
only. Exit status 1 if any run differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.tensorboard.writer import SummaryWriter  # noqa: F401  (imported here, it is there in every fork)

import fqgan.tokenizer.task  # noqa: F401
from fqgan.base import schema
from fqgan.cli import main as fqgan_main
from fqgan.config import FactorConfig, TokenizerRunConfig, presets
from fqgan.engine.run import read_stats
from fqgan.nets.efficientnet import load_efficientnet_lite0

CHECKPOINT_EVERY = 3
WRITE_SECONDS = 0.08
"""CPU time in which a kill may follow the first sight of a checkpoint's write."""


@dataclass
class Kill:
    """One SIGKILL: the steps logged until then, and where in the run it fell."""

    step: int
    where: str


@dataclass
class Outcome:
    """A run that is through."""

    kills: list[Kill] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def configuration(pictures: Path, steps: int) -> TokenizerRunConfig:
    """Everything on, as small as it goes."""
    return presets.child(
        presets.get("photos-dual"),
        model={
            "image_size": 32,
            "stem": 2,
            "channels": 32,
            "z_channels": 32,
            "dropout": 0.1,
            "adapter_head_dim": 16,
            "feature_head_width": 32,
            "factors": (
                FactorConfig("visual", 64, 4, adapter_depth=1),
                FactorConfig("semantic", 48, 4, adapter_depth=1, teacher="efficientnet-lite0@32"),
            ),
        },
        data={"source": str(pictures), "validation": str(pictures), "workers": 2},
        loss={"perceptual": "none"},
        discriminator={"weight": 0.5, "start": 2, "channels": 32, "layers": 2},
        optimizer={"warmup_steps": 3},
        train={
            "batch": 8,
            "micro_batch": 4,
            "steps": steps,
            "precision": "float32",
            "device": "cpu",
            "log_every": 1,
            "image_every": 4,
            "validate_every": 5,
            "validation_images": 6,
            "checkpoint_every": CHECKPOINT_EVERY,
        },
    )


def write_pictures(folder: Path, count: int = 22) -> None:
    """Waves with noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:40, 0:48] / 40
    for i in range(count):
        waves = np.stack([np.sin((2 + i) * x + channel) * np.cos((1 + i) * y) for channel in range(3)], -1)
        pixels = 128 + 80 * waves + rng.normal(0, 8, waves.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


def start(argv: list[str], log: Path) -> int:
    """Fork a process that runs a command, its output at the end of `log`; returns its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = fqgan_main(argv)
        sys.stdout.flush()
    finally:
        os._exit(code)


def train(config: Path, run: Path) -> int:
    """Fork a process that trains."""
    argv = ["train-tokenizer", "photos-dual", "--config", str(config), "--run", str(run)]
    return start(argv, run.with_suffix(".log"))


def cpu_seconds(child: int) -> float:
    """CPU time of a process's main thread so far."""
    return int(Path(f"/proc/{child}/schedstat").read_text().split()[0]) / 1e9


def ended(child: int, until: Callable[[], bool] = lambda: False) -> int | None:
    """The exit status of a process, or None when `until` comes first."""
    while not (ids := os.waitpid(child, os.WNOHANG))[0]:
        if until():
            return None
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(ids[1])


def moment(child: int, run: Path, rng: np.random.Generator, seconds: float) -> Callable[[], bool]:
    """When to kill: from a CPU time on, or from a CPU time after the first checkpoint's write that is seen then."""
    writing, after = rng.random() < 0.25, rng.uniform(0, WRITE_SECONDS)
    at = rng.uniform(0, seconds / 2 if writing else seconds)

    def come() -> bool:
        nonlocal at, writing
        if cpu_seconds(child) < at:
            return False
        if not writing:
            return True
        if next(run.glob("checkpoints/.writing-*"), None):
            at, writing = cpu_seconds(child) + after, False
        return False

    return come


def kill(child: int, run: Path, steps: int) -> Kill:
    """SIGKILL, and what it left."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done = (run / "stats.jsonl").read_bytes().count(b"\n") if (run / "stats.jsonl").exists() else 0
    if list(run.glob("checkpoints/.writing-*")):
        return Kill(done, "in a checkpoint's write")
    if not done:
        return Kill(done, "before the first step's line")
    return Kill(done, "after the last step" if done == steps else "between two checkpoints")


def trial(config: Path, run: Path, rng: np.random.Generator, seconds: float, steps: int) -> Outcome:
    """One run, killed once to three times, then left alone."""
    outcome = Outcome()
    for _ in range(int(rng.integers(1, 4))):
        child = train(config, run)
        status = ended(child, moment(child, run, rng, seconds))
        if status is not None:
            break  # it was through before its time
        outcome.kills.append(kill(child, run, steps))
    else:
        status = ended(train(config, run))
    if status != 0:
        text = run.with_suffix(".log").read_text().strip().splitlines()
        outcome.differences.append(f"exit status {status}: {text[-1] if text else ''}")
    return outcome


def contents(run: Path, steps: int) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""
    last = run / "checkpoints" / f"step-{steps:08d}"
    found: dict[str, Any] = {
        f"{file.stem}/{name}": tensor
        for file in sorted(last.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    for line in read_stats(run):
        found |= {f"stats/{line['step']}/{name}": value for name, value in line.items() if name != "images_per_second"}
    found |= {f"lines/{i}": line["step"] for i, line in enumerate(read_stats(run))}
    found["checkpoints"] = sorted(path.name for path in (run / "checkpoints").iterdir())
    found["config"] = (run / "config.json").read_text()
    found |= {f"images/{path.name}": path.read_bytes() for path in (run / "images").iterdir()}
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what two runs do not share."""
    different = sorted(a.keys() ^ b.keys())
    for name in sorted(a.keys() & b.keys()):
        same = torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name]
        different += [] if same else [name]
    return different


def main() -> int:
    """Run them all and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("runs", 100), ("steps", 9), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are deleted otherwise")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork, and sums keep their order
    load_efficientnet_lite0()
    with tempfile.TemporaryDirectory() as temporary:
        return compare(options.keep or Path(temporary), options.runs, options.steps, options.seed)


def compare(folder: Path, runs: int, steps: int, seed: int) -> int:
    """The uninterrupted run, then the others; returns the exit status."""
    rng, began = np.random.default_rng(seed), time.monotonic()
    write_pictures(folder / "pictures")
    config = folder / "config.json"
    schema.save(configuration(folder / "pictures", steps), config)
    for name in ("warm-up", "straight"):
        child, seconds = train(config, folder / name), 0.0

        def watch(child: int = child) -> bool:
            nonlocal seconds
            seconds = cpu_seconds(child)
            return False

        if ended(child, watch) != 0:
            print((folder / f"{name}.log").read_text())
            return 1
    expected = contents(folder / "straight", steps)
    tensors = sum(isinstance(value, torch.Tensor) for value in expected.values())
    print(f"uninterrupted: {steps} steps in {seconds:.1f} s of CPU time; {len(expected)} things to compare, ", end="")
    print(f"{tensors} of them tensors", flush=True)
    outcomes = []
    for i in range(runs):
        run = folder / f"run-{i:03d}"
        outcome = trial(config, run, rng, seconds, steps)
        outcome.differences += [] if outcome.differences else differences(contents(run, steps), expected)
        outcomes.append(outcome)
        fell = ", ".join(f"{each.step} ({each.where})" for each in outcome.kills) or "not killed in time"
        verdict = f"DIFFERS: {', '.join(outcome.differences[:5])}" if outcome.differences else "same"
        print(f"run {i + 1:>3}: killed after step {fell}: {verdict}", flush=True)
    kills = [each for outcome in outcomes for each in outcome.kills]
    different = sum(bool(outcome.differences) for outcome in outcomes)
    print(f"{different} of {runs} runs differ; {len(kills)} kills, {time.monotonic() - began:.0f} s in all")
    print("kills after step:", ", ".join(f"{s}: {n}" for s, n in sorted(Counter(k.step for k in kills).items())))
    for where, count in Counter(each.where for each in kills).most_common():
        print(f"  {count:>4} {where}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
