"""SIGKILL at random moments of `fqgan extract`: does the same command end with the same bytes?

python benchmarks/kills_extract.py [--kills 20] [--seed 0] [--keep FOLDER]

A tiny untrained tokenizer, 160 pictures, ten crops, a worker process, shards of eight pictures. Every store is killed
once to three times and started again at once by the same command, until it is through. Moments are drawn evenly from
the CPU time of a whole extraction; one in four kills waits for the next file's write then. All files are compared with
those of an extraction that nobody killed. Linux only.
Exit status 1 if any store differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from kills import ended, start, write_pictures

import fqgan
import fqgan.tokenizer.extraction
from fqgan.config import FactorConfig, presets
from fqgan.tokenizer.model import FactorizedTokenizer

PICTURES, SHARD = 160, 8


def write_tokenizer(folder: Path) -> None:
    """Two factors, 32 pixels, some thousand weights."""
    torch.manual_seed(0)
    factors = (FactorConfig("visual", 64, 4, adapter_depth=1), FactorConfig("semantic", 48, 4, adapter_depth=1))
    model = {"image_size": 32, "stem": 2, "channels": 32, "z_channels": 32, "adapter_head_dim": 16, "factors": factors}
    fqgan.save_tokenizer(FactorizedTokenizer(presets.child(presets.get("photos-dual"), model=model).model), folder)


def cpu_seconds(child: int) -> float:
    """CPU time of all threads of a process so far: threads of their own encode."""
    total = 0.0
    for task in Path(f"/proc/{child}/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
    return total


def contents(store: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def where(store: Path) -> str:
    """What a kill left."""
    if (store / "manifest.json").exists():
        return "after the manifest"
    if next(store.rglob(".*.writing"), None):
        return "in the write of a file"
    if not (store / ".unfinished/settings.json").exists():
        return "before the settings"
    done = len(list(store.glob(".unfinished/shard-*")))
    return f"with {done} of {PICTURES // SHARD} shards"


def come(child: int, store: Path, at: float, in_write: bool) -> bool:
    """Whether it is time to kill."""
    return cpu_seconds(child) >= at and (not in_write or next(store.glob(".*.writing"), None) is not None)


def main() -> int:
    """Kill, compare, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the stores, which are deleted otherwise")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as temporary:
        return compare(options.keep or Path(temporary), options.kills, options.seed)


def compare(folder: Path, kills: int, seed: int) -> int:
    """The uninterrupted extraction, then the others; returns the exit status."""
    rng, began = np.random.default_rng(seed), time.monotonic()
    write_pictures(folder / "pictures", PICTURES)
    write_tokenizer(folder / "tokenizer")
    argv = ["extract", str(folder / "tokenizer"), "--data", str(folder / "pictures"), "--crops", "ten"]
    argv += f"--shard-images {SHARD} --workers 1 --batch 2 --crops-per-pass 8 --device cpu --out".split()
    for name in ("warm-up", "straight"):
        child, seconds = start([*argv, str(folder / name)], folder / f"{name}.log"), 0.0

        def watch(child: int = child) -> bool:
            nonlocal seconds
            seconds = max(seconds, cpu_seconds(child))  # the encoding threads end, and their time is gone
            return False

        if ended(child, watch) != 0:
            print((folder / f"{name}.log").read_text())
            return 1
    expected = contents(folder / "straight")
    print(f"uninterrupted: {seconds:.2f} s of CPU time, {len(expected)} files", flush=True)
    fell: Counter[str] = Counter()
    different = stores = 0
    while fell.total() < kills:
        stores += 1
        store, log, moments = folder / f"store-{stores:03d}", folder / f"store-{stores:03d}.log", []
        for _ in range(min(int(rng.integers(1, 4)), kills - fell.total())):
            child, at = start([*argv, str(store)], log), rng.uniform(0, seconds)
            status = ended(child, partial(come, child, store, at, rng.random() < 0.25))
            if status is not None:
                break  # it was through before its time
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            moments.append(where(store))
        else:
            status = ended(start([*argv, str(store)], log))
        same = status == 0 and contents(store) == expected
        different += not same
        fell.update(moments)
        print(
            f"store {stores:>2}: killed {', '.join(moments) or 'too late'}: {'same' if same else 'DIFFERS'}", flush=True
        )
    print(f"{different} of {stores} stores differ; {fell.total()} kills, {time.monotonic() - began:.0f} s in all")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
