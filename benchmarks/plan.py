"""How true a plan's memory is: the peak of `fqgan plan` against that of real training steps, by preset.

On a CPU the peak is what the process holds in memory beyond what it held before, by the kernel's count; on a GPU
torch's `max_memory_allocated`. Each preset is measured in a process of its own; networks have random weights.

    python benchmarks/plan.py                     # three small presets
    python benchmarks/plan.py dual-ds16=1         # a preset at full size, micro-batches of 1
    python benchmarks/plan.py --device cuda dual-ds16=8 far-base=8
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fqgan.config import presets
from fqgan.engine.speed import keep_freed_memory
from fqgan.lab.planning import steps

SMALL = ["photos-dual=16", "cifar10-triple=64", "far-small=32"]
STEPS = 3


def settings(name: str, precision: str) -> Any:
    """A preset's settings; a generator's with two codebooks of 16,384 codes."""
    if name in presets.PRESETS:
        config: Any = presets.get(name)
    else:
        config = presets.get_generator(name)
        config = replace(config, model=config.model.resolved((16384, 16384), (16, 16), 1000))
    return replace(config, train=replace(config.train, precision=precision))


def held() -> int:
    """Most bytes that this process ever held in memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measured(name: str, micro_batch: int, precision: str, device: str, steps_done: int = STEPS) -> int:
    """The peak of real steps, in bytes."""
    keep_freed_memory()
    gpu = device != "cpu"
    torch.ones(4, 4).matmul(torch.ones(4, 4)).sum().item()  # what libraries take is there
    before = held()
    trainer = steps.real_trainer(settings(name, precision), micro_batch, torch.device(device))
    batches = trainer.task.batches(0)
    for step in range(steps_done):
        trainer.optimize(step, batches)
    return torch.cuda.max_memory_allocated() if gpu else held() - before


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=SMALL, help="NAME=MICRO_BATCH")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    print(f"{'preset':<18}{'planned':>12}{'measured':>12}   ratio   ({arguments.device}, {arguments.precision})")
    for each in arguments.presets:
        name, _, micro = each.partition("=")
        config, micro_batch = settings(name, arguments.precision), int(micro or 8)
        planned = steps.follow_one(config, micro_batch, gpu=arguments.device != "cpu").peak
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(measured, (name, micro_batch, arguments.precision, arguments.device))
        print(f"{each:<18}{planned / 2**20:>8,.0f} MiB{found / 2**20:>8,.0f} MiB{planned / found:>8.3f}")


if __name__ == "__main__":
    main()
