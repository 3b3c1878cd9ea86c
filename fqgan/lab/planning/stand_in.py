"""Tensors of the CPU without content, which stand for a GPU's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

from fqgan.generator.transformer import rotary_table
from fqgan.nets.weights import converted

# functions that CUDA's autocast computes in float32, and a CPU's in the type that it gets
_IN_FLOAT32 = {
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2", "pow", "__pow__"),
    *("reciprocal", "rsqrt", "sinh", "tan", "softplus", "cumprod", "dist", "norm", "vector_norm"),
    *("group_norm", "layer_norm", "softmax", "softmin", "log_softmax", "logsumexp", "cosine_similarity"),
}


class AsOnGpu(TorchFunctionMode):
    """Within, tensors of the CPU say that they are on a GPU; autocast and dropout do what they do there.

    The autograd engine asks a driver about `cuda`, even for tensors without content: so a GPU's training step can be
    followed on the CPU's only.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__get__" and getattr(func, "__self__", None) in (Tensor.is_cpu, Tensor.is_cuda):
            return func.__self__ is Tensor.is_cuda
        if name in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = [each.float() if _is_half(each) else each for each in args]
            kwargs = {key: each.float() if _is_half(each) else each for key, each in kwargs.items()}
        elif func is F.dropout:
            return _dropout(*args, **kwargs)
        elif func is Tensor.backward:
            with self:  # what is called in there is no method of a tensor's, so that this mode stays on
                seed = (torch.ones_like(args[0]),)
                return _engine_run_backward(
                    args[:1], seed, False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        return func(*args, **kwargs)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As CUDA's kernel: what is kept is a byte an element."""
    return torch.native_dropout(x, p, True)[0] if training and p else x


class _WithoutContent(FakeTensorMode):
    """What looks at a value gets 0 with `values`, and fails without."""

    def __init__(self, values: bool):
        super().__init__()
        self.values = values

    def __deepcopy__(self, memo: dict[int, Any]) -> _WithoutContent:
        """Copies of its tensors are its own, too."""
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.values and func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def without_content(gpu: bool) -> Iterator[None]:
    """Within, tensors have a shape, a type and a storage of their size, and no memory behind it.

    Args:
        gpu: they stand for a GPU's, and looking at a value fails; otherwise for a CPU's, where all of them are 0.
    """
    rotary_table.cache_clear()  # tables of one kind of tensors are not left to the other
    convert = nn.Module._apply
    nn.Module._apply = _converted  # pyright: ignore[reportAttributeAccessIssue]
    # torch's own swaps tensors in place, which it refuses for those without content
    try:
        with _WithoutContent(values=not gpu), AsOnGpu() if gpu else nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # when a module is copied
            yield
    finally:
        nn.Module._apply = convert
        rotary_table.cache_clear()


@torch.no_grad()
def _converted(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    return converted(self, fn)
