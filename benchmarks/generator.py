"""A generator's training step: tokens/s, model FLOP utilisation and memory, ours against the plain loss or a preset
against another one.

python benchmarks/generator.py [--preset far-small] [--against PRESET] [--batch 8] [--grid 16] [--codebook 16384]
    [--factors 2] [--precision bf16] [--steps 5] [--rounds 3] [--compile] [--recompute]

A step is forward, backward, clipping, the preset's optimizer and the moving average, on random codes, vectors and
clusters. "ours" is the training task; "plain" is the same model whose k matrices of logits are made whole and given
to F.cross_entropy; with --against another preset's step stands in its place. Rounds alternate, the best counts. A token
is a position with its k codes.

FLOPs of an image's forward pass, two for each multiply-add (n positions, k factors, width d, l blocks of p weights, l'
blocks in the head, K_i codes):

    2 n (l p + k l' p + k d^2 + d sum_i K_i)  +  2 d (l n^2 + l' n k^2)

the second part is attention, whose causal half alone counts. The backward pass costs twice the forward pass; what
activation checkpointing computes again does not count. Utilisation is this over the time and over the peak: --peak in
TFLOP/s, or the rate of a large matrix product measured here. On a CPU seconds are those of the process, which a busy
machine does not stretch: run it on one thread.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.config import GeneratorConfig, presets
from fqgan.config.presets import child
from fqgan.engine.distributed import pick_device
from fqgan.engine.optim import Ema, make_optimizer
from fqgan.engine.speed import autocast, compile_parts, keep_freed_memory
from fqgan.generator.cross_entropy import Clusters
from fqgan.generator.model import FAR
from fqgan.generator.transformer import Block

_CODE_DIM = 4  # of the vectors that codes share rows by


def forward_flops(config: GeneratorConfig) -> float:
    """Of one image; the formula is above. Heads other than ar have no blocks."""
    n, k, d = config.num_positions, config.num_factors, config.width
    kv = config.kv_heads or config.heads
    p = d * d * (2 + 2 * kv / config.heads) + 3 * d * config.mlp_width
    in_head = config.head_depth if config.head == "ar" else 0
    outputs = sum(config.codebook_sizes) * d * (4 if config.head == "mlp" else 1)
    hidden = {"mlp": 4 * k, "masked": k + 8 * config.head_depth}.get(config.head, 0) * d * d
    weights = config.depth * p + k * in_head * p + k * d * d + hidden + outputs
    return 2 * n * weights + 2 * d * (config.depth * n * n + in_head * n * k * k)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of square matrices."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / best(lambda: a @ a, 5, device)


def best(run: Callable[[], Any], times: int, device: torch.device) -> float:
    """Seconds of the fastest of several runs, after one that does not count."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(times + 1):
        began = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - began)
    return min(seconds[1:])


def clusters_of(vectors: Tensor, count: int) -> Clusters:
    """Of codes with these vectors, each in the cluster of the nearest of `count` of them."""
    return Clusters.grouped(torch.cdist(vectors, vectors[:count]).argmin(1))


class Step:
    """One optimizer step of a fresh model of a preset."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device, preset: str, plain: bool = False):
        config = child(presets.get_generator(preset), optimizer={"lr": 1e-4})
        sizes, grid = (arguments.codebook,) * arguments.factors, (arguments.grid, arguments.grid)
        dims = (_CODE_DIM,) * arguments.factors
        with device:  # a GPU draws hundreds of millions of weights at once
            self.model = FAR(config.model.resolved(sizes, grid, 1000, dims)).train()
            vectors = [torch.randn(size, _CODE_DIM) for size in sizes]
        if config.model.code_vectors:
            self.model.set_code_vectors(vectors)
        self.clusters, self.cluster_weight = [], config.train.cluster_weight
        if self.cluster_weight:
            counts = [*config.train.clusters] * arguments.factors
            self.clusters = [clusters_of(each, count) for each, count in zip(vectors, counts, strict=False)]
        for block in self.model.modules():
            if isinstance(block, Block):
                block.recompute = arguments.recompute
        if arguments.compile:
            compile_parts((m for m in self.model.modules() if isinstance(m, Block)), device)
        self.ema = Ema(copy.deepcopy(self.model), 0.9999)
        self.optimizer, self.plain = make_optimizer(self.model, config.optimizer), plain
        self.device, self.precision, self.clip = device, arguments.precision, config.optimizer.clip
        self.codebook = arguments.codebook
        self.resize(arguments.batch)

    def resize(self, batch: int) -> None:
        """Go on with batches of another size."""
        shape = (batch, self.model.config.num_factors, *self.model.config.grid)
        self.codes = torch.randint(self.codebook, shape, device=self.device)
        self.labels = torch.randint(1000, (batch,), device=self.device)

    def loss(self) -> Tensor:
        with autocast(self.device, self.precision):
            if not self.plain:
                found = self.model.loss(
                    self.codes, self.labels, clusters=self.clusters, cluster_weight=self.cluster_weight
                )
                return torch.stack(found.loss).mean()
            targets = self.codes.flatten(2).unbind(1)
            logits = self.model(self.codes, self.labels)
            pairs = zip(logits, targets, strict=True)
            return torch.stack([F.cross_entropy(x.flatten(0, 1).float(), y.flatten()) for x, y in pairs]).mean()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.ema.update(self.model, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="far-small")
    parser.add_argument("--against", default="", help="another preset, in place of the plain loss")
    for name, value in (("batch", 8), ("grid", 16), ("codebook", 16384), ("factors", 2), ("steps", 5), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "float32"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak", type=float, default=0.0, help="TFLOP/s; 0: measured with a matrix product")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    arguments = parser.parse_args()
    if arguments.against == arguments.preset:
        parser.error("--against names the same preset")
    keep_freed_memory()
    device = pick_device(arguments.device)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    peak = arguments.peak * 1e12 or matmul_rate(device, dtype)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{name}; {arguments.precision}, peak {peak / 1e12:.3g} TFLOP/s; {arguments}")
    preset, other = arguments.preset, arguments.against
    contestants = {preset: (preset,), other: (other,)} if other else {"ours": (preset,), "plain": (preset, True)}
    seconds: dict[str, float] = {}
    memory: dict[str, float] = {}
    flops: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for kind, what in contestants.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step = Step(arguments, device, *what)
            seconds[kind] = min(seconds.get(kind, float("inf")), best(step, arguments.steps, device))
            if device.type == "cuda":
                memory[kind] = torch.cuda.max_memory_allocated() / 2**30
            else:  # the process's peak only grows: the first is right
                memory.setdefault(kind, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
            flops[kind], positions = 3 * forward_flops(step.model.config), arguments.grid**2
            del step
    for kind, each in seconds.items():
        rate = arguments.batch / each
        print(
            f"{kind:<14}{each * 1e3:9.1f} ms a step  {rate * positions:10.0f} tokens/s  {rate:8.2f} images/s  "
            f"{rate * flops[kind] / peak:6.1%} of the peak  {memory[kind]:6.2f} GiB"
        )
    first, second = contestants
    print(f"{second} / {first}: {seconds[second] / seconds[first]:.2f} in time")


if __name__ == "__main__":
    main()
