"""Quantizers with their entropy losses: time and peak memory against plain N x K code and vector-quantize-pytorch.

python benchmarks/quantizer.py [--rows 32768] [--codes 16384] [--dim 8] [--repeats 3]

The first table is `vq` against the textbook's N x K matrices. The second has a row for each kind, at 8,192 rows and
1,024 codes: its lookup against that of `vq`, all of it forward and backward, and the same against
vector-quantize-pytorch's module of its kind, where that is installed and has one (`pip install
vector-quantize-pytorch`), without the entropy loss where theirs has none. Each number is of a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fqgan.config import FactorConfig
from fqgan.tokenizer.quantizers import QUANTIZERS, make_quantizer
from fqgan.tokenizer.quantizers.base import Quantizer
from fqgan.tokenizer.quantizers.vector import VectorQuantizer

ROWS, CODES = 8192, 1024


def plain(z: Tensor, codebook: Tensor, tau: float = 0.01) -> Tensor:
    """The textbook way: distances, softmax and its logarithm of all rows against all codes at once."""
    features, codes = F.normalize(z, dim=1).permute(0, 2, 3, 1).flatten(0, 2), F.normalize(codebook, dim=1)
    d = features.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * features @ codes.T
    q = codes[d.argmin(1)]
    p, log_p = F.softmax(-d / tau, 1), F.log_softmax(-d / tau, 1)
    mean = p.mean(0)
    entropy = -(p * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    return F.mse_loss(q, features.detach()) + 0.25 * F.mse_loss(features, q.detach()) + 0.03 * entropy


def ours(z: Tensor, quantizer: Quantizer, entropy: bool = True) -> Tensor:
    """All terms of a quantizer of ours, and a gradient through its vectors."""
    out = quantizer(z, entropy)
    return out.codebook_loss + 0.25 * out.commitment_loss + 0.03 * out.entropy_loss + 0 * out.vectors.sum()


def factor(kind: str, dim: int) -> FactorConfig:
    """1,024 codes of a kind."""
    return FactorConfig("f", CODES, dim, quantizer=kind, levels=(4, 4, 4, 4, 4) if kind == "fsq" else ())


def theirs(kind: str, dim: int) -> Callable[[Tensor], Tensor] | None:
    """vector-quantize-pytorch's forward pass of a kind on (b, n, d) rows, summed with its losses; None: none.

    Its codebook learns by gradient, as ours does. It has no `vq` that does so on the unit sphere."""
    import vector_quantize_pytorch as library

    learned = {"dim": dim, "codebook_size": CODES, "ema_update": False, "learnable_codebook": True}
    modules: dict[str, Callable[[], Any]] = {
        "vq-euclidean": lambda: library.VectorQuantize(**learned),
        "simvq": lambda: library.SimVQ(dim=dim, codebook_size=CODES),
        "fsq": lambda: library.FSQ(levels=[4, 4, 4, 4, 4]),
        "lfq": lambda: library.LFQ(codebook_size=CODES, dim=10),
        "bsq": lambda: library.LFQ(codebook_size=CODES, dim=10, spherical=True),
    }
    if kind not in modules:
        return None
    module = modules[kind]().train()

    def run(rows: Tensor) -> Tensor:
        out = module(rows)
        losses = [each.sum() for each in out[2:] if isinstance(each, Tensor) and each.is_floating_point()]
        return sum(losses, out[0].sum())

    return run


def held_bytes(device: torch.device, peak: bool = False) -> int:
    """Memory that this process holds now, or held at most (on a GPU: its tensors there)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def timed(
    run: Callable[[], Tensor], warm: Callable[[], object], repeats: int, device: torch.device
) -> dict[str, float]:
    """Best time of a forward and backward pass, and the peak of the memory beyond what was held before (Linux).

    That counts the gradients, all temporaries, and what the allocator keeps between repeats. `warm` loads libraries and
    threads before the first reading.
    """
    warm()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before, times, loss = held_bytes(device), [], torch.zeros(())
    for _ in range(repeats):
        began = time.perf_counter()
        loss = run()
        if loss.requires_grad:
            loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {"seconds": min(times), "bytes": held_bytes(device, peak=True) - before, "loss": loss.item()}


def measure(
    which: str, rows: int, codes: int, dim: int, repeats: int, device: torch.device | None = None
) -> dict[str, float]:
    """`plain` or `ours`, the two of the first table."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codes, dim).to(device)
    z = torch.randn(rows // 256, dim, 16, 16, device=device, requires_grad=True)
    small = VectorQuantizer(64, dim).to(device)
    return timed(
        lambda: plain(z, quantizer.codebook) if which == "plain" else ours(z, quantizer),
        lambda: (ours(z[:1], small) + plain(z[:1], small.codebook)).backward(),
        repeats,
        device,
    )


def measure_kind(which: str, dim: int, repeats: int) -> dict[str, float]:
    """`KIND lookup`, `KIND ours`, `KIND bare` (without the entropy loss) or `KIND theirs`, on a CPU; nothing where the
    library has no such module."""
    kind, what = which.split()
    torch.manual_seed(0)
    shape = factor(kind, dim)
    z = torch.randn(ROWS // 64, shape.code_dim, 8, 8, requires_grad=True)
    if what == "theirs":
        module = theirs(kind, dim)
        if module is None:
            return {}
        rows = z.detach().permute(0, 2, 3, 1).reshape(len(z), 64, -1).requires_grad_()
        return timed(lambda: module(rows), lambda: module(rows[:1]).backward(), repeats, z.device)
    quantizer = make_quantizer(shape)
    if what == "lookup":
        lookup = torch.no_grad()(lambda: quantizer(z).embeddings.sum())
        return timed(lookup, lookup, repeats, z.device)
    entropy = what == "ours"
    warm = lambda: ours(z[:1], quantizer, entropy).backward()  # noqa: E731
    return timed(lambda: ours(z, quantizer, entropy), warm, repeats, z.device)


def kinds(run: Callable[..., dict[str, float]], repeats: int) -> None:
    """The second table."""
    compared = importlib.util.find_spec("vector_quantize_pytorch") is not None
    print(f"\n{ROWS:,} rows, {CODES:,} codes" + ("" if compared else "; vector-quantize-pytorch is not installed"))
    vq = run("vq lookup", repeats=max(20, repeats))["seconds"]
    for kind in QUANTIZERS:
        lookup = run(f"{kind} lookup", repeats=max(20, repeats))["seconds"]
        own = run(f"{kind} ours", repeats=max(20, repeats))
        text = f"{kind:>12}: lookup {1e3 * lookup:6.2f} ms, {lookup / vq:.2f} of vq's; "
        text += f"with gradients {1e3 * own['seconds']:7.2f} ms, {own['bytes'] / 2**20:.0f} MiB"
        other = run(f"{kind} theirs", repeats=max(20, repeats)) if compared else {}
        if other:
            fair = own if kind in ("lfq", "bsq") else run(f"{kind} bare", repeats=max(20, repeats))
            text += f"; theirs {other['seconds'] / fair['seconds']:.1f} times as long as ours of the same terms, "
            text += f"{other['bytes'] / 2**20:.0f} MiB against {fair['bytes'] / 2**20:.0f}"
        print(text, flush=True)


def main() -> None:
    """Run all and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 32768), ("codes", 16384), ("dim", 8), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    if only := options.pop("only"):
        found = measure_kind(only, options["dim"], options["repeats"]) if " " in only else measure(only, **options)
        print(json.dumps(found))
        return

    def run(which: str, **changed: int) -> dict[str, float]:
        arguments = [f"--{name}={value}" for name, value in (options | changed).items()]
        command = [sys.executable, __file__, "--only", which, *arguments]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    results = {which: run(which) for which in ("plain", "ours")}
    for which, numbers in results.items():
        print(f"{which:>5}: {numbers['seconds']:.3f} s, {numbers['bytes'] / 2**20:.0f} MiB, loss {numbers['loss']:.6f}")
    seconds, memory = (results["ours"][key] / results["plain"][key] for key in ("seconds", "bytes"))
    print(f"ours / plain: time {seconds:.2f}, peak extra memory 1/{1 / memory:.1f}")
    kinds(run, options["repeats"])


if __name__ == "__main__":
    main()
