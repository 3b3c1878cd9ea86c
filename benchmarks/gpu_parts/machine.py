"""Which card it is, and how fast it multiplies and reads: what other figures are compared with."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from sampler import machine

from gpu_parts.bench import Bench
from gpu_parts.results import Row


def facts(small: bool, device: torch.device) -> Row:
    """Card, driver, versions, date."""
    cuda = device.type == "cuda"
    card = (
        torch.cuda.get_device_name() if cuda else f"{platform.processor() or 'CPU'}, {torch.get_num_threads()} threads"
    )
    memory = f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.1f} GiB" if cuda else ""
    return {
        "card": card,
        "memory": memory,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else "",
        "python": platform.python_version(),
        "commit": _said("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
        "small": "yes" if small else "",
    }


def run(bench: Bench) -> None:
    """Ends the process with status 4 where there is no such device, or the results are another machine's."""
    if bench.device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; a dry run is --device cpu --small")
        sys.exit(4)
    found, old = facts(bench.small, bench.device), bench.results.machine
    if odd := [name for name in ("card", "torch", "small") if old and old.get(name) != found[name]]:
        print(f"{bench.results.path} has results of another {odd[0]}, {old[odd[0]]!r}: --fresh starts again")
        sys.exit(4)
    if old and old["commit"] != found["commit"]:
        print(f"note: rows that are there already are of commit {old['commit']}, this is {found['commit']}")
        found["commit"] = f"{old['commit']} to {found['commit']}" if " to " not in old["commit"] else old["commit"]
    bench.results.machine = found
    bench.results.save()
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        bench.row(name, lambda dtype=dtype: peak(bench, dtype))


def peak(bench: Bench, dtype: torch.dtype) -> Row:
    """As `benchmarks/sampler.py` measures them."""
    bandwidth, rate = machine(dtype, bench.device)
    return {"TFLOP/s of a large product": rate / 1e12, "GB/s read": bandwidth / 1e9}


def bf16_rate(bench: Bench) -> float:
    """FLOP/s of a large product in bf16, which utilisation refers to; measured here where its row is missing."""
    row = bench.results.rows.get("machine", {}).get("bf16", {}).get("values")
    return (row or peak(bench, torch.bfloat16))["TFLOP/s of a large product"] * 1e12


def _said(*command: str) -> str:
    """What a program prints; empty where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
