"""Sampling with FAR against two baselines, in one run, with ratios and the limit that the hardware sets.

python benchmarks/sampler.py [--preset far-base] [--factors 2] [--batch 2] [--positions 256] [--rounds 3] [--threads 2]

Ours is the sampler of `generator.sampler`. Baseline (a) is the full forward pass without a cache, at a few lengths, the
others in between by a straight line. Baseline (b) is transformers' LlamaModel of the backbone's shape with a
StaticCache, eager, and a plain loop over an equally plain head. All have random weights, guidance on both halves of
the batch, and draw from the whole distribution at temperature 1. Rounds alternate between ours and (b), in both types;
the best round counts. Decoding is by an untrained `--tokenizer` preset.

The limit of a position is the larger of two times: the bytes that must be read (all weights in use once, the AR head's
k times, and on average half of the cache's positions) over the bandwidth that this run measures by reading a large
tensor, and the products' operations over the rate that it measures on a large product of the same type.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.config import GeneratorConfig, presets
from fqgan.engine.distributed import pick_device
from fqgan.engine.speed import keep_freed_memory
from fqgan.generator.model import FAR
from fqgan.tokenizer.model import FactorizedTokenizer

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SCALE = 2.0


def build(config: GeneratorConfig, device: torch.device) -> FAR:
    """A generator with random weights."""
    with torch.device("meta"):
        model = FAR(config)
    model.to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1)
    return model


class Llama(nn.Module):
    """Baseline (b): LlamaModel and StaticCache for the backbone, and for the head a second one without a cache, whose
    short sequence is run anew for every factor, as one would write it first."""

    def __init__(self, config: GeneratorConfig, batch: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        from transformers import LlamaConfig, LlamaModel

        def llama(depth: int, positions: int) -> Any:
            shape = LlamaConfig(
                vocab_size=8,
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=depth,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads or config.heads,
                max_position_embeddings=positions,
                rms_norm_eps=config.norm_eps,
            )
            with device:
                return LlamaModel(shape).to(dtype).eval()

        d = config.width
        self.config, self.batch, self.device, self.dtype = config, batch, device, dtype
        self.backbone, self.head = llama(config.depth, config.num_positions), llama(config.head_depth, 64)
        self.classes = nn.Embedding(config.num_classes + 1, d)
        self.codes = nn.ModuleList(nn.Embedding(size, d) for size in config.codebook_sizes)
        self.aggregate = nn.Linear(config.num_factors * d, d)
        self.outputs = nn.ModuleList(nn.Linear(d, size, bias=False) for size in config.codebook_sizes)
        self.to(device, dtype)

    @torch.no_grad()
    def forward(self, positions: int) -> Tensor:
        """Codes (b, positions, k)."""
        from transformers import StaticCache

        cache = StaticCache(config=self.backbone.config, max_cache_len=self.config.num_positions)
        null = self.config.num_classes
        labels = torch.tensor([0] * self.batch + [null] * self.batch, device=self.device)
        x = self.classes(labels)[:, None]
        drawn = []
        for t in range(positions):
            at = torch.tensor([t], device=self.device)
            g = self.backbone(inputs_embeds=x, past_key_values=cache, position_ids=at[None]).last_hidden_state
            sequence, embeddings, codes = g, [], []
            for table, output in zip(self.codes, self.outputs, strict=True):
                vector = self.head(inputs_embeds=sequence, use_cache=False).last_hidden_state[:, -1]
                c, u = output(vector).float().chunk(2)
                code = torch.multinomial((u + SCALE * (c - u)).softmax(-1), 1)
                embeddings.append(table(torch.cat([code, code])))
                sequence = torch.cat([sequence, embeddings[-1]], 1)
                codes.append(code)
            x = self.aggregate(torch.cat(embeddings, -1))
            drawn.append(torch.cat(codes, 1))
        return torch.stack(drawn, 1)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def without_cache(model: FAR, batch: int, dtype: torch.dtype, device: torch.device, positions: int) -> float:
    """Baseline (a): seconds for all positions, from the full forward pass at four lengths."""
    model = build(replace(model.config), device).to(dtype)
    rotary, lengths = model.rotary(device), sorted({1, positions // 3, 2 * positions // 3, positions} - {0})
    seconds = []
    with torch.no_grad():
        for n in lengths:
            x = torch.randn(2 * batch, n, model.config.width, device=device, dtype=dtype)

            def forward(x: Tensor = x, n: int = n) -> None:
                y = x
                for block in model.blocks:
                    y = block(y, rotary[:n])
                vectors = model.head(y[:, -1], [y[:, -1]] * model.config.num_factors)
                for output, vector in zip(model.head.outputs, vectors, strict=True):
                    output(vector)

            forward()
            seconds.append(timed(forward, device))
    total = 0.0
    for t in range(1, positions + 1):
        i = max(j for j in range(len(lengths)) if lengths[j] <= t)
        if i == len(lengths) - 1:
            total += seconds[i]
            continue
        share = (t - lengths[i]) / (lengths[i + 1] - lengths[i])
        total += seconds[i] + share * (seconds[i + 1] - seconds[i])
    return total


class Shortened:
    """A sampler that stops early, for quick runs."""

    def __init__(self, sampler: Any, positions: int):
        self.sampler, self.positions = sampler, min(positions, sampler.positions)

    def __call__(self, labels: Any, seed: int = 0) -> None:
        rows = self.sampler.join(labels, seed)
        for _ in range(self.positions):
            self.sampler.step()
        self.sampler.leave(rows)


def work(config: GeneratorConfig, batch: int, positions: int, size: int) -> tuple[float, float]:
    """Bytes read and operations of one position, at `size` bytes a number."""
    d, hidden = config.width, config.mlp_width
    kv = (config.kv_heads or config.heads) * (d // config.heads)
    block = d * (d + 2 * kv) + d * d + 3 * d * hidden
    passes = config.depth + config.head_depth * config.num_factors
    outputs, aggregate = d * sum(config.codebook_sizes), config.num_factors * d * d
    cache = config.depth * 2 * (2 * batch) * kv * (positions + 1) / 2
    numbers = passes * block + outputs + aggregate + cache
    # guidance acts before the output matrices: one row an image there, two elsewhere
    operations = 2 * (2 * batch * (passes * block + cache / (2 * batch)) + batch * (outputs + aggregate))
    return numbers * size, operations


def machine(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Bytes a second of reading, and operations a second of a large product."""
    n = 1 << (28 if device.type == "cuda" else 26)
    big = torch.ones(n, device=device)
    read = min(timed(big.sum, device) for _ in range(6))
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = min(timed(lambda: a @ b, device) for _ in range(4))
    return 4 * n / read, 2 * side**3 / product


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="far-base")
    parser.add_argument("--tokenizer", default="dual-ds16", help="preset for decoding; only with as many factors")
    for name, value in (("factors", 2), ("batch", 2), ("positions", 256), ("rounds", 3), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precisions", nargs="*", default=["bf16", "float32"], choices=DTYPES)
    parser.add_argument("--ks", nargs="*", type=int, default=[1, 2, 4, 8], help="numbers of factors to compare")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 64, 128], help="of ours alone, on a GPU")
    parser.add_argument("--skip", nargs="*", default=[], choices=("a", "b", "decode", "k"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = pick_device(options.device)
    base = presets.get_generator(options.preset).model
    config = base.resolved((16384,) * options.factors, (16, 16), 1000)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{options.preset}, k = {options.factors}, {options.positions} of {config.num_positions} positions, ", end="")
    print(f"guidance {SCALE}, batch {options.batch}, on {where}, torch {torch.__version__}", flush=True)
    model = build(config, device)
    ours = compare(options, model, device)
    if "a" not in options.skip:
        for name in options.precisions:
            seconds = without_cache(model, options.batch, DTYPES[name], device, options.positions)
            print(f"(a) no cache {name}: {seconds:.1f} s (from four lengths), {seconds / ours[name]:.1f} x ours")
    if device.type == "cuda":
        for batch in options.batches:
            alone(options, model, batch, device)
    if "k" not in options.skip:
        del model
        grow(options, config, device)


def compare(options: argparse.Namespace, model: FAR, device: torch.device) -> dict[str, float]:
    """Ours and (b), round by round; returns our best seconds."""
    config, n = model.config, options.positions
    labels = list(range(options.batch))
    runs: dict[str, Callable[[], object]] = {}
    for name in options.precisions:
        dtype = DTYPES[name]
        began = time.perf_counter()
        sampler = Shortened(model.set_precision(name).sampler(options.batch, cfg_scale=SCALE), n)
        prepared = time.perf_counter() - began
        first = timed(lambda sampler=sampler: sampler(labels), device)
        print(f"cold start {name}: {prepared:.2f} s to prepare, {first:.2f} s for the first batch", flush=True)
        runs[f"ours {name}"] = lambda sampler=sampler: sampler(labels)
        if "b" not in options.skip:
            llama = Llama(config, options.batch, dtype, device)
            llama(2)
            runs[f"(b) {name}"] = lambda llama=llama: llama(n)
        if "decode" not in options.skip and options.factors == len(presets.get(options.tokenizer).model.factors):
            tokenizer = FactorizedTokenizer(presets.get(options.tokenizer).model).to(device).eval().set_precision(name)
            codes = torch.zeros(options.batch, options.factors, *config.grid, dtype=torch.int64, device=device)

            def decode(tokenizer: FactorizedTokenizer = tokenizer, codes: Tensor = codes) -> None:
                with torch.no_grad():
                    tokenizer.decode(codes)

            decode()
            runs[f"decode {name}"] = decode
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(options.rounds):
        for name, run in runs.items():
            best[name] = min(best[name], timed(run, device))
    for name, seconds in best.items():
        pace = "" if "decode" in name else f", {1e3 * seconds / n:.1f} ms a position"
        print(f"{name}: {seconds:.2f} s{pace}, {options.batch / seconds:.3f} images/s", flush=True)
    for name in options.precisions:
        report(best, name, config, options, device)
    if {"(b) float32", "ours bf16"} <= best.keys():
        print(f"ours bf16 is {best['(b) float32'] / best['ours bf16']:.2f} x as fast as (b) in float32", flush=True)
    return {name: best[f"ours {name}"] for name in options.precisions}


def report(
    best: dict[str, float], name: str, config: GeneratorConfig, options: argparse.Namespace, device: torch.device
) -> None:
    """Ratios and the share of the limit, in one type."""
    mine, decode = best[f"ours {name}"], best.get(f"decode {name}", 0.0)
    if theirs := best.get(f"(b) {name}"):
        text = f"ours {name} is {theirs / mine:.2f} x as fast as (b) in {name}"
        print(text + (f", {(theirs + decode) / (mine + decode):.2f} x with decoding" if decode else ""))
    limit = limit_of(config, options.batch, options.positions, DTYPES[name], device)
    print(f"ours {name}: {limit['text']}: {limit['seconds'] * options.positions / mine:.0%} of the limit", flush=True)


def limit_of(
    config: GeneratorConfig, batch: int, positions: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Seconds a position at least, and why."""
    size, operations = work(config, batch, positions, dtype.itemsize)
    bandwidth, rate = machine(dtype, device)
    times = size / bandwidth, operations / rate
    text = (
        f"{size / 1e6:.0f} MB at {bandwidth / 1e9:.1f} GB/s = {1e3 * times[0]:.2f} ms, "
        f"{operations / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s = {1e3 * times[1]:.2f} ms a position"
    )
    return {"seconds": max(times), "text": text}


def alone(options: argparse.Namespace, model: FAR, batch: int, device: torch.device) -> None:
    """Ours at another batch: the median and the 95th percentile of some calls."""
    sampler = Shortened(model.set_precision("bf16").sampler(batch, cfg_scale=SCALE), options.positions)
    labels = [i % 1000 for i in range(batch)]
    sampler(labels)
    seconds = torch.tensor([timed(lambda: sampler(labels), device) for _ in range(20)])
    middle, late = seconds.quantile(torch.tensor([0.5, 0.95])).tolist()
    limit = limit_of(model.config, batch, options.positions, torch.bfloat16, device)
    share = limit["seconds"] * options.positions / middle
    print(f"batch {batch}: p50 {middle:.3f} s, p95 {late:.3f} s, {batch / middle:.1f} images/s, ", end="")
    print(f"{share:.0%} of the limit ({limit['text']})", flush=True)


def grow(options: argparse.Namespace, config: GeneratorConfig, device: torch.device) -> None:
    """Cost as k grows, at a few positions, in the first type."""
    name, positions = options.precisions[0], min(16, options.positions)
    first = 0.0
    for k in options.ks:
        gc.collect()
        model = build(replace(config, codebook_sizes=(16384,) * k), device).set_precision(name)
        sampler = Shortened(model.sampler(options.batch, cfg_scale=SCALE), positions)
        sampler([0] * options.batch)
        call = partial(sampler, [0] * options.batch)
        pace = min(timed(call, device) for _ in range(options.rounds)) / positions
        first = first or pace
        told = f"{pace / first:.2f} x k = {options.ks[0]}"
        print(f"k = {k}: {1e3 * pace:.1f} ms a position in {name}, {told}", flush=True)
        del model, sampler, call


if __name__ == "__main__":
    main()
