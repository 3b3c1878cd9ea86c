"""FAR's training step at the largest micro-batch that fits."""

from __future__ import annotations

import argparse

from generator import Step, forward_flops
from gpu import planned_peak

from fqgan.config import presets
from fqgan.engine.speed import fast_precision, keep_freed_memory
from gpu_parts.bench import Bench
from gpu_parts.machine import bf16_rate
from gpu_parts.results import Row


def run(bench: Bench) -> None:
    keep_freed_memory()
    names = ("far-tiny",) if bench.small else ("far-base", "far-large")
    found: dict[str, Row | None] = {}
    for variant in ("", ", compiled", ", recomputed"):
        for name in names:
            row = name + variant
            size = int((found.get(name) or {}).get("images a micro-batch", 0)) if variant == ", compiled" else 0
            needs = 30 if variant == ", compiled" else 12
            found[row] = bench.row(row, lambda n=name, v=variant, s=size: training(bench, n, v, s), needs=needs)
            if (plain := found[name]) and (own := found[row]) and variant:
                bench.derived(f"{row} / {name}", {"x": own["tokens/s"] / plain["tokens/s"]})


def training(bench: Bench, preset: str, variant: str, size: int) -> Row:
    """Steps at a size, or the largest below it that fits; 0: at the largest of all. A token is a position."""
    small = bench.small
    arguments = argparse.Namespace(
        batch=2,
        grid=4 if small else 16,
        codebook=64 if small else 16384,
        factors=2,
        precision=fast_precision(bench.device),
        compile=variant == ", compiled",
        recompute=variant == ", recomputed",
    )
    if size:
        arguments.batch = size
    step = Step(arguments, bench.device, preset)

    def run(count: int) -> None:
        step.resize(count)
        step()

    size = bench.shrunk(run, size or bench.largest(run, 2 if small else 16, 1024))
    with bench.memory() as peak:
        run(size)
        seconds = bench.seconds(step, 4)
        memory = peak()
    rate = size / seconds
    used = 3 * forward_flops(step.model.config) * rate / bf16_rate(bench)
    values = {"tokens/s": rate * arguments.grid**2, "images/s": rate, "images a micro-batch": size}
    model = vars(step.model.config)
    train = {"activation_checkpointing": arguments.recompute, "precision": arguments.precision, "ema_decay": 0.9999}
    config = presets.child(presets.get_generator(preset), model=model, train=train)
    planned = {} if arguments.compile else {"GiB planned": planned_peak(config, size)}
    return {**values, "of the peak of bf16": used, "GiB at most": memory, **planned}
