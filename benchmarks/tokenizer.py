"""A tokenizer's encoding, decoding and training step: plain float32 against the fast path, each in its own process.

python benchmarks/tokenizer.py [--preset dual-ds16] [--size 256] [--batch 4] [--rounds 2] [--checkpoint RUN] [--profile]

"plain" is eager PyTorch as one would write it first: float32, the usual memory layout, quantization with the whole
N x K matrix of distances. "fast" is what training does by default (bf16, channels_last) and what `precision="bf16"`
does for encoding and decoding. The training step holds every loss (reconstruction, perceptual, entropy,
disentanglement, representation, GAN), the discriminator's step and both optimizers' updates. Rounds alternate between
the two, the best counts; on a busy machine compare the CPU seconds, on one thread. Codes and PSNR are compared on the
packaged photographs: with the weights of `--checkpoint`, else with random ones, whose codes mean little.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from tokenizer_step import TrainingStep
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fqgan.config import TokenizerConfig, TokenizerRunConfig, presets
from fqgan.data.sources import open_source
from fqgan.data.transforms import normalize, resize_shorter, to_tensor
from fqgan.engine.distributed import pick_device
from fqgan.engine.speed import keep_freed_memory
from fqgan.metrics.psnr import psnr
from fqgan.nets.perceptual import load_perceptual
from fqgan.nets.teachers import load_teacher
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.quantizers.base import Quantized
from fqgan.tokenizer.quantizers.vector import VectorQuantizer

TEACHER = "efficientnet-lite0"  # ships in a package
JOBS = ("encode", "decode", "train")


def plain_quantizer(self: VectorQuantizer, z: Tensor, entropy: bool = False) -> Quantized:
    """The textbook way: distances, softmax and its logarithm of all rows against all codes at once."""
    features, codebook = F.normalize(z.float(), dim=1), F.normalize(self.codebook, dim=1)
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    d = rows.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * rows @ codebook.T
    codes, loss = d.argmin(1), rows.new_zeros(())
    if entropy:
        scores = -d / self.entropy_temperature
        p, log_p = F.softmax(scores, 1), F.log_softmax(scores, 1)
        mean = p.mean(0)
        loss = -(p * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    codes = codes.view(z.shape[0], *z.shape[2:])
    return Quantized(codes, features, F.embedding(codes, codebook).permute(0, 3, 1, 2), loss)


def photographs(count: int, size: int) -> Tensor:
    """(count, 3, size, size) of the packaged photographs' held-out crops, spread over the classes."""
    source = open_source("photos", "validation")
    chosen = [i * len(source) // count for i in range(count)]
    return normalize(torch.stack([to_tensor(resize_shorter(source.read(i)[0], size)) for i in chosen]))


def run_config(options: argparse.Namespace) -> TokenizerRunConfig:
    """The preset with every loss active from the first step, and networks that ship in packages."""
    config = presets.get(options.preset)
    factors = tuple(replace(f, teacher=TEACHER, teacher_dim=0) if f.teacher else f for f in config.model.factors)
    fast = options.path == "fast"
    return presets.child(
        config,
        model={"image_size": options.size, "factors": factors},
        data={"source": "photos"},
        loss={"perceptual": TEACHER},
        discriminator={"start": 0, "weight": config.discriminator.weight or 0.5},
        train={
            "batch": options.batch,
            "precision": "bf16" if fast else "float32",
            "channels_last": "auto" if fast else "off",
            "compile": options.compile,
            "activation_checkpointing": options.activation_checkpointing,
        },
    )


def tokenizer(options: argparse.Namespace, config: TokenizerConfig, device: torch.device) -> FactorizedTokenizer:
    """The checkpoint's tokenizer, else an untrained one, as the path uses it."""
    torch.manual_seed(0)
    model = load_tokenizer(options.checkpoint, device) if options.checkpoint else FactorizedTokenizer(config).to(device)
    return model.eval().set_precision("bf16" if options.path == "fast" else "float32")


def packaged_step(options: argparse.Namespace, device: torch.device) -> TrainingStep:
    """A step with networks and pictures that ship in packages."""
    config = run_config(options)
    teachers = {name: load_teacher(name) for name in {f.teacher for f in config.model.factors} if name}
    images = photographs(options.batch, options.size).to(device)
    return TrainingStep(
        config, open_source("photos", "train"), teachers, load_perceptual(config.loss.perceptual), images
    )


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far by this process, or by its tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def job_of(options: argparse.Namespace, device: torch.device) -> Callable[[], object]:
    """What a job repeats."""
    if options.job == "train":
        return packaged_step(options, device)
    model = tokenizer(options, run_config(options).model, device)
    if options.job == "encode":
        images = photographs(options.batch, options.size).to(device)
        return lambda: model.encode(images)
    grid = options.size // model.config.downsampling
    sizes = [q.codebook_size for q in model.quantizers]
    codes = torch.stack([torch.randint(n, (options.batch, grid, grid)) for n in sizes], 1).to(device)
    return lambda: model.decode(codes)


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Best wall and CPU seconds of one call after a first one, and the process's peak memory."""
    run = job_of(options, device)
    wall, cpu = [], []
    with torch.set_grad_enabled(options.job == "train"):
        for _ in range(options.repeats + 1):
            synchronize(device)
            began, began_cpu = time.perf_counter(), time.process_time()
            run()
            synchronize(device)
            wall.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
    return {"wall": min(wall[1:]), "cpu": min(cpu[1:]), "bytes": peak_bytes(device)}


@torch.no_grad()
def quality(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Share of codes equal to float32's, of each factor, and the PSNR lost, in float32 minus fast."""
    options.path = "plain"
    model = tokenizer(options, run_config(options).model, device)
    size = model.config.image_size if options.checkpoint else options.size
    equal, lost = [], []
    for images in photographs(options.images, size).to(device).split(8):
        codes, reconstructions = {}, {}
        for precision in ("float32", "bf16"):
            model.set_precision(precision)
            codes[precision] = model.encode(images)
            reconstructions[precision] = model.decode(codes[precision]).clamp(-1, 1)
        equal.append((codes["float32"] == codes["bf16"]).float().mean((2, 3)))
        lost.append(psnr(images, reconstructions["float32"]) - psnr(images, reconstructions["bf16"]))
    names = [factor.name for factor in model.config.factors]
    shares = torch.cat(equal).mean(0).tolist()
    return {"size": size, "equal": dict(zip(names, shares, strict=True)), "lost": torch.cat(lost).mean().item()}


class Parts:
    """Seconds and floating-point operations of the parts of a training step, by wrapping their calls."""

    def __init__(self, device: torch.device):
        self.device, self.counter = device, FlopCounterMode(display=False)
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, int] = {}
        self.counting = self.inside = False

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Take the time of `owner.method` as part `name`; calls inside of another part belong to that one."""
        inner = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return inner(*args, **kwargs)
            self.inside = True
            synchronize(self.device)
            began, flops = time.perf_counter(), self.counter.get_total_flops() if self.counting else 0
            result = inner(*args, **kwargs)
            synchronize(self.device)
            if self.counting:
                self.flops[name] = self.flops.get(name, 0) + self.counter.get_total_flops() - flops
            else:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            self.inside = False
            return result

        setattr(owner, method, call)


def profile(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Where a training step's time goes, and the machine's peak on large products in the same type."""
    step = packaged_step(options, device)
    task, parts = step.task, Parts(device)
    assert task.perceptual is not None and task.adversary is not None
    parts.wrap(task.model.encoder, "forward", "encoder")
    for branch in task.model.branches:
        parts.wrap(branch, "project", "adapters and projections")
        parts.wrap(branch.quantizer, "forward", "quantizers")
        if branch.head is not None:
            parts.wrap(branch.head, "forward", "feature heads")
    parts.wrap(task.model.decoder, "forward", "decoder")
    parts.wrap(task.perceptual, "forward", "perceptual distance")
    for teacher in task.teachers.values():
        parts.wrap(teacher, "forward", "teacher")
    parts.wrap(task.adversary.discriminator, "forward", "discriminator (3 passes)")
    parts.wrap(Tensor, "backward", "backward (both networks)")
    for phase in task.phases:
        parts.wrap(phase.optimizer, "step", "optimizers")
    step()
    parts.seconds = {}
    began = time.perf_counter()
    step()
    total = time.perf_counter() - began
    parts.counting = True
    with parts.counter:
        step()
    return {"total": total, "seconds": parts.seconds, "flops": parts.flops, "peak": machine_peak(options, device)}


def machine_peak(options: argparse.Namespace, device: torch.device) -> float:
    """FLOP/s of a large matrix product or convolution, whichever is faster, in the path's type."""
    fast = options.path == "fast"
    dtype = torch.bfloat16 if fast else torch.float32
    n, width, side = (2048, 128, 128) if device.type == "cpu" else (8192, 512, 128)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    conv = nn.Conv2d(width, width, 3, padding=1, bias=False).to(device, dtype)
    x = torch.randn(1, width, side, side, device=device, dtype=dtype)
    if fast:
        conv, x = (y.to(memory_format=torch.channels_last) for y in (conv, x))  # pyright: ignore
    work = ((lambda: a @ b, 2 * n**3), (lambda: conv(x), 2 * 9 * width**2 * side**2))
    best = 0.0
    with torch.no_grad():
        for call, flops in work:
            call()
            for _ in range(5):
                synchronize(device)
                began = time.perf_counter()
                call()
                synchronize(device)
                best = max(best, flops / (time.perf_counter() - began))
    return best


def main() -> None:
    """Measure both paths and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="dual-ds16")
    for name, value in (("size", 256), ("batch", 4), ("rounds", 2), ("repeats", 1), ("images", 40), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--checkpoint", default="", help="a trained tokenizer, for codes and PSNR")
    parser.add_argument("--jobs", nargs="*", default=JOBS, choices=JOBS)
    parser.add_argument("--profile", action="store_true", help="also the parts of a training step")
    parser.add_argument("--compile", action="store_true", help="train.compile in the fast path")
    parser.add_argument("--activation-checkpointing", default="none", choices=("none", "transformer", "all"))
    parser.add_argument("--job", choices=(*JOBS, "quality", "profile"), help=argparse.SUPPRESS)
    parser.add_argument("--path", choices=("plain", "fast"), default="fast", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = pick_device(options.device)
    if options.job:
        worker(options, device)
        return
    for job in options.jobs:
        compare(job, options.rounds, options.batch)
    trained = options.checkpoint or "random weights: these numbers mean little"
    numbers = in_process("quality", "fast")
    shares = ", ".join(f"{name} {share:.2%}" for name, share in numbers["equal"].items())
    print(f"codes equal to float32's: {shares}; PSNR lost {numbers['lost']:.4f} dB at {numbers['size']} ({trained})")
    if options.profile:
        for path in ("plain", "fast"):
            print_profile(path, in_process("profile", path))


def worker(options: argparse.Namespace, device: torch.device) -> None:
    """One measurement, printed as JSON."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.path == "plain":
        VectorQuantizer.forward = plain_quantizer
        options.compile, options.activation_checkpointing = False, "none"
    else:
        keep_freed_memory()
    functions = {"quality": quality, "profile": profile}
    print(json.dumps(functions.get(options.job, measure)(options, device)))


def in_process(job: str, path: str) -> dict[str, Any]:
    """A measurement in a process of its own, with this command's options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--job", job, "--path", path]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def compare(job: str, rounds: int, batch: int) -> None:
    """Both paths in turn; the best of each."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for path in ("plain", "fast"):
            numbers = in_process(job, path)
            old = best.get(path, dict.fromkeys(("wall", "cpu"), math.inf) | {"bytes": 0})
            best[path] = {key: (max if key == "bytes" else min)(old[key], numbers[key]) for key in old}
    for path, numbers in best.items():
        times = f"{numbers['wall']:.2f} s, {numbers['cpu']:.2f} CPU s for {batch} images"
        print(f"{job:>6} {path}: {times}, peak {numbers['bytes'] / 2**20:.0f} MiB", flush=True)
    plain, fast = best["plain"], best["fast"]
    speed = ", ".join(f"{plain[key] / fast[key]:.2f} x by {key} time" for key in ("wall", "cpu"))
    print(f"{job:>6} fast: {speed}, {fast['bytes'] / plain['bytes']:.0%} of the peak memory", flush=True)


def print_profile(path: str, numbers: dict[str, Any]) -> None:
    """The parts of a training step, slowest first, and what the arithmetic alone would take."""
    peak, total = numbers["peak"], numbers["total"]
    flops = sum(numbers["flops"].values())
    print(f"{path}: {total:.2f} s a step; peak of the machine {peak / 1e9:.0f} GFLOP/s in this type")
    for name, seconds in sorted(numbers["seconds"].items(), key=lambda item: -item[1]):
        done = numbers["flops"].get(name, 0)
        print(f"  {name:<26}{seconds:8.2f} s{seconds / total:6.0%}{done / seconds / 1e9:8.0f} GFLOP/s")
    print(f"  {'anything else':<26}{total - sum(numbers['seconds'].values()):8.2f} s")
    print(f"  {flops / 1e9:.0f} GFLOP: at least {flops / peak:.2f} s, {flops / peak / total:.0%} of what was taken")


if __name__ == "__main__":
    main()
