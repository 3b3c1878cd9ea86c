"""A GPU rehearsed without one: fake tensors take the device `cuda`, refuse mixed devices, and have no values, so that
whatever would make a GPU wait for one (`.item()`, a tensor as a condition) fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fqgan.config import SamplingConfig, presets
from fqgan.generator import step
from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.generator.transformer import rotary_table

BATCH = 2


class NothingLeaves(TorchDispatchMode):
    """Refuses copies from the GPU to the CPU, for which it would have to finish first."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        came = [each for each in args if isinstance(each, Tensor) and each.device.type == "cuda"]
        if came and isinstance(result, Tensor) and result.device.type == "cpu":
            raise AssertionError(f"{func} brings a tensor from the GPU")
        return result


@contextmanager
def rehearsed(device: str = "cuda", compiling: bool = False) -> Iterator[None]:
    """Tensors that are made here are fake ones on `device`; nothing may wait for it. Autocast on `cuda` is on without
    one. `compiling`: with torch.compile, which refuses the mode that sees what leaves."""
    rotary_table.cache_clear()  # of an earlier rehearsal's tensors
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda: True))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.device(device))
        if device == "cuda" and not compiling:
            stack.enter_context(NothingLeaves())
        yield
    rotary_table.cache_clear()


@contextmanager
def counted() -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that torch.compile makes in here. Nothing is made of them; a function of several graphs is an error,
    and so are more forms of one function than torch allows."""
    graphs: list[torch.fx.GraphModule] = []
    original = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def compile_(function: Any, **options: Any) -> Any:
        return original(function, **{**options, "backend": backend, "fullgraph": True})

    def forget() -> None:
        torch.compiler.reset()
        step._compiled.cache_clear()

    forget()
    with patch.object(torch, "compile", compile_), patch("fqgan.engine.speed.all_reduce_sum", lambda tensor: 0):
        yield graphs
    forget()


def generator_of(name: str, k: int, **model: Any) -> FAR:
    """The generator of a preset for a tokenizer of ImageNet with k factors."""
    shape = {"codebook_sizes": (16384,) * k, "grid": (16, 16), "num_classes": 1000}
    return FAR(replace(presets.get_generator(name).model, **{**shape, **model}))


class Scales:
    """Guidance scales of half of the positions. Before the first step a sampler asks for their values, on the CPU, and
    fake tensors have none."""

    def __init__(self, config: SamplingConfig, rows: int, k: int):
        self.shape = rows, k

    def to(self, device: torch.device) -> Tensor:
        return torch.ones(self.shape, device=device)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.repeat([[2.0], [1.0]], self.shape[0] // 2, 0))


def sampler_of(generator: FAR, compiled: bool) -> Sampler:
    """A sampler that guides half of the positions and cuts draws in every way."""
    options = SamplingConfig(cfg_scale=(2.0,), cfg_interval=(0.0, 0.5), top_k=(16,), top_p=(0.9,))
    with patch("fqgan.generator.sampler.guidance_scales", Scales):
        return Sampler(generator, BATCH, options, static=True, compiled=compiled)
