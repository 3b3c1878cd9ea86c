"""Speed and memory of the metrics at the size of an evaluation, each in a process of its own.

python benchmarks/metrics.py [--rows 10000] [--dim 2048] [--threads 2] [--only frechet]

Precision and recall, and the kernel distance, compare two sets of `rows` features; time grows with rows squared, memory
with rows. `collect` is one pass of images through a network with all statistics, and the share of its time that the
statistics take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from quantizer import held_bytes

from fqgan.evaluation.collect import FeatureCollector
from fqgan.metrics.frechet import FeatureStatistics, frechet_distance
from fqgan.metrics.kernel import kernel_distance
from fqgan.metrics.neighbours import precision_recall
from fqgan.nets.measuring import load_network


def timed(call: Callable[[], object]) -> tuple[float, float, int]:
    """Seconds, seconds of the processor over all threads, which other work on the machine does not change much, and the
    peak of the memory beyond what was held before (Linux)."""
    device = torch.device("cpu")
    before, began, used = held_bytes(device), time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - used, held_bytes(device, peak=True) - before


def measure(which: str, rows: int, dim: int) -> str:
    torch.manual_seed(0)
    if which == "collect":
        return collect_share()
    a, b = torch.randn(rows, dim), 0.9 * torch.randn(rows, dim)
    sets = 2 * rows * dim * 4
    if which == "frechet":
        both = []
        for features in (a, b):
            statistics = FeatureStatistics(dim)
            for batch in features.split(64):
                statistics.update(batch)
            both.append(statistics.compute())
        seconds, used, extra = timed(lambda: frechet_distance(both[0], both[1]))
        times = f"{seconds:.2f} s ({used:.2f} CPU s)"
        return f"Frechet distance of {rows:,}, {dim}-d: {times}, {extra / 2**20:.0f} MiB beside the statistics"
    metric = {"precision_recall": precision_recall, "kernel_distance": kernel_distance}[which]
    metric(a[:50], b[:50])  # libraries and threads are loaded before the first reading
    seconds, used, extra = timed(lambda: metric(a, b))
    memory = f"{extra / 2**20:.0f} MiB beside, {(extra + sets) / 2**20:.0f} MiB with the features"
    return f"{which}, {rows:,} x {rows:,} x {dim}: {seconds:.1f} s ({used:.1f} CPU s), {memory}"


def collect_share(images: int = 64) -> str:
    network = load_network("efficientnet-lite0")
    batch, indices = torch.randint(0, 256, (images, 3, 224, 224), dtype=torch.uint8), torch.arange(images)
    collector = FeatureCollector(network, range(2 * images), 10**6, "cpu")
    collector.update(batch, indices)
    _, plain, _ = timed(lambda: network(batch))
    _, whole, _ = timed(lambda: collector.update(batch, indices + images))
    return (
        f"collect, efficientnet-lite0 at 224 pixels: {images / plain:.1f} images a CPU s through the network alone, "
        f"{images / whole:.1f} with all statistics ({1 - plain / whole:.0%} of the time)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    names = ("frechet", "precision_recall", "kernel_distance", "collect")
    parser.add_argument("--only", choices=names)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(measure(arguments.only, arguments.rows, arguments.dim)))
        return
    print(f"{arguments.threads} threads", flush=True)
    for name in (arguments.only,) if arguments.only else names:
        options = ["--rows", arguments.rows, "--dim", arguments.dim, "--threads", arguments.threads]
        command = [sys.executable, __file__, "--here", "--only", name, *map(str, options)]
        print(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout), flush=True)


if __name__ == "__main__":
    main()
