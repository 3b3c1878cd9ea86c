"""A GPU rehearsed without one: fake tensors take the device `cuda`, refuse mixed devices, and have no values, so that
whatever would make a GPU wait for one (`.item()`, a tensor as a condition) fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fqgan.config import SamplingConfig, presets
from fqgan.generator import step
from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.generator.transformer import rotary_table
from fqgan.nets.weights import converted

BATCH = 2
aten: Any = torch.ops.aten


class NothingWaits(TorchDispatchMode):
    """Refuses copies between CPU and GPU that wait until the GPU has done all that came before: those to the CPU, and
    those to the GPU that are not told to go on (`non_blocking`, from pinned memory)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        came = {each.device.type for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        gone = {each.device.type for each in tree_leaves(result) if isinstance(each, Tensor)}
        if "cuda" in came and "cpu" in gone:
            raise AssertionError(f"{func} brings a tensor from the GPU")
        patient = func in (aten._to_copy.default, aten.copy_.default) and not (kwargs or {}).get("non_blocking")
        if patient and came | gone == {"cpu", "cuda"} and not (len(args) > 2 and args[2]):
            raise AssertionError(f"{func} brings a tensor to the GPU and waits")
        return result


@contextmanager
def rehearsed() -> Iterator[None]:
    """Tensors that are made here are fake ones. Models and batches are put on `cuda` by themselves: elsewhere a tensor
    without a device is a CPU's, as on a machine with a GPU. Autocast on `cuda` is on without one."""
    rotary_table.cache_clear()  # of an earlier rehearsal's tensors
    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda: True),
        # what fake tensors cannot do: be pinned, and be copied with the mode that they are of
        patch.object(Tensor, "pin_memory", lambda tensor: tensor),
        patch.object(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, create=True),
        FakeTensorMode(),
    ):
        yield
    rotary_table.cache_clear()


def moved(module: nn.Module, *place: Any, memory_format: torch.memory_format | None = None) -> nn.Module:
    """`Module.to` for fake tensors, whose own cannot."""
    if place:
        return converted(module, lambda tensor: tensor.to(*place))
    assert memory_format
    return converted(
        module, lambda tensor: tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor
    )


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
    with patch("fqgan.generator.rows.guidance_scales", Scales):
        return Sampler(generator, BATCH, options, static=True, compiled=compiled)


def under_way(sampler: Sampler, t: int) -> tuple[list[int], list[int]]:
    """All rows at a position; returns them, and those that are guided."""
    rows = list(range(sampler.batch))
    assert sampler.rule
    sampler.slots.take(rows, sampler.rule, None)
    sampler.slots.at[rows] = t
    return rows, sampler.slots.needs_guidance(rows)
