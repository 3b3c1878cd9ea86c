"""A device that is not there, for rehearsals of `mps`: it has no float64, refuses to meet tensors of the CPU, and
computes, behind that, on the CPU, so that its results can be compared.

torch knows the name `mps` on Macs only. Here it is the backend that torch keeps for others, called `metal`; a process
gets it once and for good, so rehearsals run in processes of their own.
"""

from __future__ import annotations

import sys
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from fqgan.engine import devices

NAME = "metal"
aten: Any = torch.ops.aten
MISSING: set[str] = set()
"""Operators, as `aten::sort`, that the device lacks."""
SPOILT: dict[str, float] = {}
"""Operators whose results come out wrong, and by which factor."""


_kept: list[torch.library.Library] = []


class There(Tensor):
    """A tensor on the device: `values` are on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> There:
        if values.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        with torch.inference_mode(False):  # a view must not be of another kind than what it views
            made = Tensor._make_wrapper_subclass(cls, values.size(), device=torch.device(NAME, 0), **layout)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __repr__(self, **options: Any) -> str:
        return f"There({self.detach().cpu()!r})"


class _Operators(TorchDispatchMode):
    """Sees what makes tensors on the device out of nothing, or out of the CPU's."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return _compute(func, args, kwargs) if _is_there(args, kwargs) else func(*args, **kwargs)


class _Constants(TorchFunctionMode):
    """torch.tensor and the like go around all operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(args[0].device)
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


def _is_there(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator's result is on the device, or its input."""
    leaves = tree_leaves((args, kwargs))
    return any(isinstance(each, There) or (isinstance(each, torch.device) and each.type == NAME) for each in leaves)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, leaves = func.name(), tree_leaves((args, kwargs))
    if name.partition(".")[0] in MISSING:
        raise NotImplementedError(
            f"The operator '{name}' is not currently implemented for the MPS device. As a temporary fix, you can set "
            "the environment variable `PYTORCH_ENABLE_MPS_FALLBACK=1`"
        )
    came = any(isinstance(each, There) for each in leaves)
    stays = [each for each in leaves if isinstance(each, Tensor) and not isinstance(each, There) and each.ndim]
    if came and stays and func is not aten.copy_.default:
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found one on the CPU")
    target = next((each for each in leaves if isinstance(each, torch.device)), None)
    there = came if target is None else target.type == NAME
    if came and torch.float64 in [each for each in leaves if isinstance(each, torch.dtype)]:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype, not on its way to the CPU either")

    def bare(each: Any) -> Any:
        if isinstance(each, There):
            return each.values
        return torch.device("cpu") if isinstance(each, torch.device) and each.type == NAME else each

    result = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    if factor := SPOILT.get(name.partition(".")[0], 0):
        result = result * factor
    if there:
        result = tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if came and there else result


def _autocast() -> None:
    """Products and convolutions in bf16 under autocast, as on `mps`; all else as it is."""
    others, own = (torch.library.Library(name, "IMPL", "AutocastPrivateUse1") for name in ("_", "aten"))
    others.fallback(torch.library.fallthrough_kernel)

    def in_bf16(name: str) -> Any:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            cast = [
                each.bfloat16() if isinstance(each, Tensor) and each.dtype == torch.float32 else each for each in args
            ]
            with torch.autocast(NAME, enabled=False):
                return getattr(aten, name).default(*cast, **kwargs)

        return kernel

    for name in ("conv2d", "linear", "matmul", "scaled_dot_product_attention"):
        own.impl(name, in_bf16(name))
    _kept.extend((others, own))


def as_mps() -> None:
    """From here on the device `mps` of fqgan is the device of this file, in this process."""
    module = _DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]  # pyright: ignore[reportAttributeAccessIssue]
    _setup_privateuseone_for_python_backend(NAME, backend_module=module)
    _autocast()
    for mode in (_Constants(), _Operators()):
        mode.__enter__()
    devices._WITHOUT_FLOAT64 = (NAME,)
    known = devices.pick_device

    def pick_device(name: str | torch.device) -> torch.device:
        return torch.device(NAME, 0) if str(name) in ("mps", NAME) else known(name)

    def save_file(tensors: dict[str, Tensor], *rest: Any) -> None:
        safetensors.torch.save_file({name: tensor.cpu() for name, tensor in tensors.items()}, *rest)

    def load_file(path: Any, device: str = "cpu") -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in safetensors.torch.load_file(path).items()}

    # safetensors knows `mps`, and not this one; it looks at the memory of tensors, too
    replaced = {known: pick_device, safetensors.torch.save_file: save_file, safetensors.torch.load_file: load_file}
    for name, module in list(sys.modules.items()):
        for own, value in list(vars(module).items()) if name.startswith("fqgan.") else ():
            if callable(value) and getattr(value, "__hash__", None) and value in replaced:
                setattr(module, own, replaced[value])
