"""Plain N x K quantization with entropy loss against ours: time and peak memory, each in a process of its own.

python benchmarks/quantizer.py [--rows 32768] [--codes 16384] [--dim 8] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fqgan.tokenizer.quantizers.vector import VectorQuantizer


def plain(z: Tensor, codebook: Tensor, tau: float = 0.01) -> Tensor:
    """The textbook way: distances, softmax and its logarithm of all rows against all codes at once."""
    features, codes = F.normalize(z, dim=1).permute(0, 2, 3, 1).flatten(0, 2), F.normalize(codebook, dim=1)
    d = features.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * features @ codes.T
    q = codes[d.argmin(1)]
    p, log_p = F.softmax(-d / tau, 1), F.log_softmax(-d / tau, 1)
    mean = p.mean(0)
    entropy = -(p * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    return F.mse_loss(q, features.detach()) + 0.25 * F.mse_loss(features, q.detach()) + 0.03 * entropy


def ours(z: Tensor, quantizer: VectorQuantizer) -> Tensor:
    """`VectorQuantizer`."""
    out = quantizer(z, entropy=True)
    return out.codebook_loss + 0.25 * out.commitment_loss + 0.03 * out.entropy_loss


def held_bytes(device: torch.device, peak: bool = False) -> int:
    """Memory that this process holds now, or held at most (on a GPU: its tensors there)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def measure(
    which: str, rows: int, codes: int, dim: int, repeats: int, device: torch.device | None = None
) -> dict[str, float]:
    """Best time of a forward and backward pass, and the peak of the memory beyond what was held before (Linux).

    That counts the gradients, all temporaries, and what the allocator keeps between repeats.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes, dim).to(device)
    z = torch.randn(rows // 256, dim, 16, 16, device=device, requires_grad=True)
    small = VectorQuantizer(64, dim).to(device)  # libraries and threads are loaded before the first reading
    (ours(z[:1], small) + plain(z[:1], small.codebook)).backward()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before, times = held_bytes(device), []
    for _ in range(repeats):
        began = time.perf_counter()
        loss = plain(z, quantizer.codebook) if which == "plain" else ours(z, quantizer)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {"seconds": min(times), "bytes": held_bytes(device, peak=True) - before, "loss": loss.item()}


def main() -> None:
    """Run both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("rows", 32768), ("codes", 16384), ("dim", 8), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", choices=("plain", "ours"))
    options = vars(parser.parse_args())
    only = options.pop("only")
    if only:
        print(json.dumps(measure(only, **options)))
        return
    arguments = [f"--{name}={value}" for name, value in options.items()]
    results = {}
    for which in ("plain", "ours"):
        command = [sys.executable, __file__, "--only", which, *arguments]
        results[which] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        numbers = results[which]
        print(f"{which:>5}: {numbers['seconds']:.3f} s, {numbers['bytes'] / 2**20:.0f} MiB, loss {numbers['loss']:.6f}")
    seconds, memory = (results["ours"][key] / results["plain"][key] for key in ("seconds", "bytes"))
    print(f"ours / plain: time {seconds:.2f}, peak extra memory 1/{1 / memory:.1f}")


if __name__ == "__main__":
    main()
