"""Nearest code and entropy loss, forward and backward, against the whole matrix of distances."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import torch
import torch.nn.functional as F
from quantizer import measure

from fqgan.tokenizer.quantizers.nearest import nearest_codes
from gpu_parts.bench import Bench
from gpu_parts.results import Row


def run(bench: Bench) -> None:
    rows, codes, dim = (512, 256, 8) if bench.small else (131072, 16384, 8)
    both = {}
    for which in ("ours", "plain"):
        both[which] = bench.row(f"{which}, entropy loss", lambda w=which: learning(bench, w, rows, codes, dim))
    if (ours := both["ours"]) and (plain := both["plain"]):
        bench.derived(
            "plain / ours", {"x in time": plain["ms"] / ours["ms"], "x in memory": plain["GiB"] / ours["GiB"]}
        )
    for exponent in (22, 24, 28):  # the smallest stays in a GPU's cache; 26 is what there is
        name = f"ours, entropy loss, chunks of 2^{exponent} scores"
        bench.row(name, lambda e=exponent: in_chunks(bench, e, rows, codes, dim))
    for which in ("ours", "plain"):
        bench.row(f"{which}, nearest code alone", lambda w=which: nearest(bench, w, rows, codes, dim))


def learning(bench: Bench, which: str, rows: int, codes: int, dim: int) -> Row:
    """As `benchmarks/quantizer.py`; the memory is what is held beyond inputs."""
    found = measure(which, rows, codes, dim, 5, bench.device)
    return {"ms": found["seconds"] * 1e3, "GiB": max(found["bytes"], 1) / 2**30, "loss": found["loss"]}


def in_chunks(bench: Bench, exponent: int, rows: int, codes: int, dim: int) -> Row:
    def chunks(rows: torch.Tensor, columns: int) -> Iterator[slice]:
        step = max(1, 2**exponent // columns)
        return (slice(start, start + step) for start in range(0, len(rows), step))

    with patch("fqgan.tokenizer.quantizers.vector.chunks", chunks):
        return learning(bench, "ours", rows, codes, dim)


def nearest(bench: Bench, which: str, rows: int, codes: int, dim: int) -> Row:
    z, codebook = (F.normalize(torch.randn(n, dim, device=bench.device), dim=1) for n in (rows, codes))

    def plain() -> torch.Tensor:
        distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
        return distances.argmin(1)

    with bench.memory() as peak, torch.no_grad():
        seconds = bench.seconds((lambda: nearest_codes(z, codebook)) if which == "ours" else plain)
        return {"ms": seconds * 1e3, "GiB": peak()}
