"""What saves time or memory: torch.compile, CUDA graphs, bf16, activations computed again, the allocator's settings."""

from __future__ import annotations

import ctypes
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fqgan.base.printing import say
from fqgan.engine.distributed import all_reduce_sum

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
_LARGEST = 2**31 - 1
_FORMS = 256
_LARGEST_BEFORE_2_35 = 2**25  # the threshold that older versions of glibc take; they refuse larger ones


def keep_freed_memory() -> None:
    """Keep freed memory in the process instead of handing it back after each tensor.

    By default glibc maps every block above 32 MiB anew, and the kernel clears it page by page: an elementwise
    operation on a large feature map then takes 3 to 5 times as long. Elsewhere than on glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - not there in other C libraries
        # a refused threshold would stay where it is for good, as setting the other one ends its growth
        if not libc.mallopt(_MMAP_THRESHOLD, _LARGEST):
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE_2_35)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST)


def compile_parts(parts: Iterable[nn.Module], device: torch.device) -> bool:
    """torch.compile modules in place; names of weights stay.

    Where compiling does not work, on whichever rank, one warning says so and nothing is compiled. Returns whether it
    was done.
    """
    problem = compile_problem(device)
    if all_reduce_sum(torch.tensor(float(bool(problem)), device=device)):
        reason = problem or "it fails on another rank"
        say(f"fqgan: warning: train.compile has no effect here, torch.compile fails: {reason}", error=True)
        return False
    allow_forms()
    for part in parts:
        part.compile()
    return True


def allow_forms() -> None:
    """Let torch.compile make a function in as many forms as it has shapes. torch stops at 8 for all modules of a class
    and goes on without compiling: too few for the heads of three factors in training, evaluation and its last batch."""
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _FORMS)


def compile_problem(device: torch.device) -> str:
    """Why nothing can be compiled for a device, in a line; empty if a small function can."""
    salt = random.SystemRandom().randrange(2**31)  # a constant that no cache of compiled code has seen
    try:
        compiled = torch.compile(lambda x: (x * 2 + salt).relu(), dynamic=False)
        compiled(torch.ones(64, device=device))
    except Exception as error:  # whatever the compiler and its helpers raise
        torch.compiler.reset()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast, or none for `float32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16. A CPU without (AVX-512 or AMX on x86) converts each operation's numbers to
    and fro, and trains a tokenizer at a tenth of float32's speed. Apple's GPU has it from macOS 14 on."""
    if device.type == "cuda":
        return True
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    try:
        ones = torch.ones(2, 2, device=device)
        with torch.autocast(device.type, torch.bfloat16), warnings.catch_warnings(action="ignore"):
            product = ones @ ones
        return product.dtype == torch.bfloat16 and product.sum().item() == 8
    except (RuntimeError, TypeError):
        return False


def fast_precision(device: torch.device) -> Literal["bf16", "float32"]:
    """bf16 where the device has it."""
    return "bf16" if has_bf16(device) else "float32"


class Graphs:
    """CUDA graphs of a device's steps, replayed without their launches. Nothing in a graph's memory outlives its
    replay, so all share one pool."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def captured(self, step: Callable[[], object], kept: Sequence[Tensor]) -> Callable[[], object]:
        """The replay of a step, which is run three times before; what `kept` held is put back after each."""
        # compilation, tuning and workspaces come before the capture, on a stream of its own as it asks for
        before = [tensor.clone() for tensor in kept]
        current = torch.cuda.current_stream(self._device)
        stream = self._stream = self._stream or torch.cuda.Stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
                for tensor, own in zip(kept, before, strict=True):
                    tensor.copy_(own)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # what other threads do meanwhile must not spoil the capture
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            step()
        self._pool = graph.pool()
        return graph.replay


class Recomputing(nn.Module):
    """A block. With `recompute` its backward pass recomputes what its forward pass would keep.

    The gradients stay the same bit for bit: the random state of dropout is restored.
    """

    recompute = False

    def forward(self, *inputs: Any) -> Tensor:
        """What `compute` gives."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self.compute, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return self.compute(*inputs)

    def compute(self, *inputs: Any) -> Tensor:
        """What the block does."""
        raise NotImplementedError
