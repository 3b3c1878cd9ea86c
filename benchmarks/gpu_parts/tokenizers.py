"""The tokenizer: encoding, decoding and training steps, at the largest micro-batch that fits."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu import planned_peak
from PIL import Image
from tokenizer_step import TrainingStep
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fqgan.config import TokenizerRunConfig, presets, teacher_dim
from fqgan.data.sources import open_source
from fqgan.engine.speed import keep_freed_memory
from fqgan.nets.architectures import blank_networks
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.speed import compile_tokenizer
from gpu_parts.bench import Bench
from gpu_parts.machine import bf16_rate
from gpu_parts.results import Row

FLOPS = "GFLOP an image"
TINY_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 224,
    "patch_size": 14,
}
STEPS: dict[str, dict[str, Any]] = {
    "bf16, plain": {"channels_last": "off"},
    "bf16, channels_last": {"channels_last": "on"},
    "bf16, channels_last, compiled": {"channels_last": "on", "compile": True},
    "bf16, channels_last, tuned by cuDNN": {"channels_last": "on"},
    "bf16, channels_last, transformers recomputed": {"channels_last": "on", "activation_checkpointing": "transformer"},
    "bf16, channels_last, all recomputed": {"channels_last": "on", "activation_checkpointing": "all"},
    "float32 with TF32 convolutions, plain": {"channels_last": "off", "precision": "float32"},
}
PLAIN, EAGER, COMPILED, TUNED = list(STEPS)[:4]


def run(bench: Bench) -> None:
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        config = preset(bench, Path(folder))
        measure_all(bench, config, Frozen(bench, config, Path(folder)))


def measure_all(bench: Bench, config: TokenizerRunConfig, frozen: Frozen) -> None:
    """The rows, in their order."""
    coding = {}
    for precision in ("bf16", "float32"):
        for job in ("encode", "decode"):
            name = f"{job}, {precision}"
            coding[name] = bench.row(name, lambda j=job, p=precision: code(bench, config, j, p, False), needs=10)
    flops = bench.row("arithmetic of a training step", lambda: arithmetic(bench, config, frozen), needs=15)
    steps: dict[str, Row | None] = {}
    for name, options in STEPS.items():

        def measure(options: dict[str, Any] = options, name: str = name) -> Row:
            size = int((steps.get(EAGER) or {}).get("images a micro-batch", 0)) if name in (COMPILED, TUNED) else 0
            with torch.backends.cudnn.flags(enabled=True, benchmark=name == TUNED, allow_tf32=True):
                return training(bench, configured(config, options), frozen, flops, size)

        aim = ">= 1.5 x plain" if name == COMPILED else ""
        steps[name] = bench.row(name, measure, needs=60 if name == COMPILED else 15, limit=150, aim=aim)
        if (found := steps[name]) and (plain := steps[PLAIN]) and name != PLAIN:
            bench.derived(f"{name} / plain", {"x": found["images/s"] / plain["images/s"]}, aim=aim)
    bench.row("kernels of a step", lambda: kernels(bench, configured(config, STEPS[EAGER]), frozen), needs=15)
    for job in ("encode", "decode"):
        name = f"{job}, bf16, compiled"
        bench.row(name, lambda j=job: code(bench, config, j, "bf16", True), needs=40, limit=150)


def preset(bench: Bench, folder: Path) -> TokenizerRunConfig:
    """dual-ds16 with every loss from the first step on; in a dry run with one narrow level and a teacher of the
    folder."""
    config = presets.get("dual-ds16")
    factors = tuple(replace(f, teacher_dim=teacher_dim(f) if f.teacher else 0) for f in config.model.factors)
    model: dict[str, Any] = {"factors": factors}
    if bench.small:
        (folder / "config.json").write_text(json.dumps(TINY_CLIP))
        teacher = {"teacher": f"clip:{folder}", "teacher_dim": 32}
        small = (replace(f, codebook_size=64, adapter_depth=1, **(teacher if f.teacher else {})) for f in factors)
        model |= {"image_size": 16, "stem": 2, "channels": 32, "channel_multipliers": (1,), "res_blocks": 1}
        model |= {"z_channels": 32, "adapter_head_dim": 32, "feature_head_depth": 1, "factors": tuple(small)}
    gan = {"start": 0} | ({"channels": 16, "layers": 2} if bench.small else {})
    return presets.child(config, model=model, discriminator=gan)


def configured(config: TokenizerRunConfig, train: dict[str, Any]) -> TokenizerRunConfig:
    """One micro-batch a step; its size may change from step to step, as nothing but the images depends on it."""
    return presets.child(config, train={"batch": 1, **train})


class Frozen:
    """The frozen networks of the preset with random weights, and a source to name."""

    def __init__(self, bench: Bench, config: TokenizerRunConfig, folder: Path):
        self.folder = folder
        Image.new("RGB", (32, 32)).save(folder / "grey.png")
        with bench.device:
            self.perceptual, self.teachers = blank_networks(config, bench.device)

    def step(self, config: TokenizerRunConfig, images: Tensor) -> TrainingStep:
        """A step of the real training loop."""
        return TrainingStep(config, open_source(str(self.folder)), self.teachers, self.perceptual, images)


def images(bench: Bench, config: TokenizerRunConfig, count: int) -> Tensor:
    size = config.model.image_size
    return torch.rand(count, 3, size, size, device=bench.device) * 2 - 1


def training(bench: Bench, config: TokenizerRunConfig, frozen: Frozen, flops: Row | None, size: int) -> Row:
    """Steps at a size, or the largest below it that fits; 0: at the largest of all."""
    step = frozen.step(config, images(bench, config, 1))

    def run(count: int) -> None:
        step.show(images(bench, config, count))
        step()

    size = bench.shrunk(run, size or bench.largest(run, 2 if bench.small else 8, 512))
    with bench.memory() as peak:
        run(size)
        seconds = bench.seconds(step, 4)
        memory = peak()
    rate = size / seconds
    done = {"of the peak of bf16": rate * flops[FLOPS] * 1e9 / bf16_rate(bench)} if flops else {}
    planned = {} if config.train.compile else {"GiB planned": planned_peak(config, size)}
    return {"images/s": rate, "images a micro-batch": size, **done, "GiB at most": memory, **planned}


def arithmetic(bench: Bench, config: TokenizerRunConfig, frozen: Frozen) -> Row:
    """Operations of a step, the discriminator's, LPIPS's and the teacher's among them."""
    count = 2
    step = frozen.step(configured(config, STEPS[EAGER]), images(bench, config, count))
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return {FLOPS: counter.get_total_flops() / count / 1e9}


def kernels(bench: Bench, config: TokenizerRunConfig, frozen: Frozen) -> Row:
    return bench.kernels(frozen.step(config, images(bench, config, 2 if bench.small else 16)), 12)


def code(bench: Bench, config: TokenizerRunConfig, job: str, precision: str, compiled: bool) -> Row:
    """Encoding or decoding of a batch, without gradients."""
    model: nn.Module = FactorizedTokenizer(config.model).to(bench.device).eval().set_precision(precision)
    assert isinstance(model, FactorizedTokenizer)
    if compiled and not compile_tokenizer(model, bench.device):
        raise RuntimeError("torch.compile does not work here")
    count = 2 if bench.small else 64
    seen, grid = images(bench, config, count), config.model.grid
    codes = torch.zeros(count, model.num_factors, grid, grid, dtype=torch.int64, device=bench.device)
    jobs: dict[str, Callable[[], object]] = {
        "encode": lambda: model.encode(seen, values=False),
        "decode": lambda: model.decode(codes, values=False),
    }
    with torch.no_grad(), bench.memory() as peak:
        seconds = bench.seconds(jobs[job])
        return {"images/s": count / seconds, "images a batch": count, "GiB at most": peak()}
