"""The sampler: ours against the plain loop over transformers' Llama, in bf16 with guidance, and its cost as k grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sampler import SCALE, Llama, Shortened, build, limit_of, timed
from torch.nn.attention import SDPBackend, sdpa_kernel

from fqgan.config import GeneratorConfig, presets
from fqgan.engine.speed import fast_precision
from fqgan.generator.model import FAR
from fqgan.tokenizer.model import FactorizedTokenizer
from gpu_parts.bench import Bench
from gpu_parts.results import Row

SMALL = {"width": 64, "depth": 2, "heads": 2, "head_depth": 1, "mlp_multiple": 16}
BACKENDS = {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}


def run(bench: Bench) -> None:
    base = presets.get_generator("far-base").model
    sizes, grid = ((64, 64), (4, 4)) if bench.small else ((16384, 16384), (16, 16))
    config = (replace(base, **SMALL) if bench.small else base).resolved(sizes, grid, 1000)
    part = Part(bench, config)
    batches = (8, 64, 256, 1) if not bench.small else (2, 1)
    for batch in batches[:2]:
        part.compare(batch)
    for k in (2, 1, 4, 8) if not bench.small else (2, 1):
        bench.row(f"k = {k} at batch 8, first positions", lambda k=k: part.with_factors(k), needs=15)
    for batch in batches[2:]:
        part.compare(batch)
    for batch in batches[:2]:
        bench.row(f"kernels at batch {batch}", lambda batch=batch: part.kernels(batch), needs=25)
    for name in BACKENDS:
        bench.row(f"attention by {name} at batch 64", lambda name=name: part.attention(name), needs=15)


class Part:
    """Measurements of one generator with random weights."""

    def __init__(self, bench: Bench, config: GeneratorConfig):
        self.bench, self.config, self.device = bench, config, bench.device
        self.precision = fast_precision(bench.device)
        self.dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.model = build(config, self.device).set_precision(self.precision)
        self.first = min(64, config.num_positions)
        """Positions of the measurements that need not run to the end."""

    def compare(self, batch: int) -> None:
        """Ours, the plain loop, decoding, and what follows from them."""
        bench, names = self.bench, [f"{name}, batch {batch}" for name in ("ours", "plain loop", "decoding")]
        aim = "at least 50% of the limit, 150 images/s on an H100" if batch == 64 else ""
        ours = bench.row(names[0], lambda: self.ours(self.model, batch), needs=30, aim=aim)
        plain = bench.row(names[1], lambda: self.plain(batch), needs=10)
        decoding = bench.row(names[2], lambda: self.decoding(batch))
        if ours and plain:
            ratio = ours["images/s"] / plain["images/s"]
            bench.derived(f"ours / plain loop, batch {batch}", {"x": ratio}, aim=">= 3 x" if batch == 8 else "")
        if ours and decoding:
            with_decoding = 1 / (1 / ours["images/s"] + 1 / decoding["images/s"])
            bench.derived(f"ours with decoding, batch {batch}", {"images/s": with_decoding})

    def ours(self, model: FAR, batch: int, positions: int = 0, **switches: Any) -> Row:
        """A sampler from its making on."""
        n = positions or self.config.num_positions
        with self.bench.memory() as peak:
            run, prepared = self.sampler(model, batch, n, **switches)
            seconds = self.bench.seconds(run, 10)
            memory = peak()
        limit = limit_of(model.config, batch, n, self.dtype, self.device)
        whole = {"images/s": batch / seconds} if n == self.config.num_positions else {}
        share = {"of the limit": limit["seconds"] * n / seconds, "": limit["text"]}
        return whole | {"ms a position": 1e3 * seconds / n, "s to prepare": prepared, "GiB": memory} | share

    def sampler(self, model: FAR, batch: int, positions: int, **switches: Any) -> tuple[Callable[[], object], float]:
        """One batch as a call, and the seconds that compilation and capture took."""
        made: list[Any] = []

        def first() -> None:
            made.append(Shortened(model.sampler(batch, cfg_scale=SCALE, **switches), positions))
            made[0](labels)

        labels = [i % 1000 for i in range(batch)]
        return lambda: made[0](labels), timed(first, self.device)

    def plain(self, batch: int) -> Row:
        """The loop as one would write it first, with kernels launched one by one."""
        llama, n = Llama(self.config, batch, self.dtype, self.device), self.config.num_positions
        llama(4)
        seconds = min(timed(lambda: llama(n), self.device) for _ in range(2))
        return {"images/s": batch / seconds, "ms a position": 1e3 * seconds / n}

    def decoding(self, batch: int) -> Row:
        preset = presets.get("photos-dual" if self.bench.small else "dual-ds16")
        tokenizer = FactorizedTokenizer(preset.model).to(self.device).eval().set_precision(self.precision)
        codes = torch.zeros(batch, 2, *self.config.grid, dtype=torch.int64, device=self.device)
        with torch.inference_mode(), self.bench.memory() as peak:
            # in parts, as `fqgan generate` does
            seconds = self.bench.seconds(lambda: [tokenizer.decode(part, values=False) for part in codes.split(64)])
            return {"images/s": batch / seconds, "GiB": peak()}

    def with_factors(self, k: int) -> Row:
        """Batch 8, the first positions alone."""
        config = replace(self.config, codebook_sizes=self.config.codebook_sizes[:1] * k)
        model = build(config, self.device).set_precision(self.precision)
        return self.ours(model, 8, self.first)

    def kernels(self, batch: int) -> Row:
        return self.bench.kernels(self.sampler(self.model, batch, self.first)[0])

    def attention(self, name: str) -> Row:
        """Not compiled, as a compiled step keeps the kernel that it was compiled with."""
        try:
            with sdpa_kernel(BACKENDS[name]):
                return self.ours(self.model, 2 if self.bench.small else 64, self.first, compiled=False)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            return {"": "no kernel for this"}
