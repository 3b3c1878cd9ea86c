"""Watches operators as they are called: which memory is alive when, and what each of them computes and moves."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_BLOCK = 512
"""Bytes: what CUDA's allocator rounds up to."""
_FORMULAS: dict[Any, Callable[..., int]] = {
    # not in the registry of torch 2.11
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ],
    **flop_registry,
}
HALF, TF32, FLOAT = range(3)
"""How an operator computes: in bf16; in float32 where convolutions may round to TF32; in float32."""
_NO_WORK = (
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
    "resize_",
)


_has_kernel = lru_cache(torch._C._dispatch_has_kernel_for_dispatch_key)


class Tracker(TorchDispatchMode):
    """Within, every storage that comes into being is followed to its end, and every operator's work is noted.

    Works on fake tensors and on real ones. Memory that an operator takes and gives back within itself is not seen.

    Attributes:
        changes: (storage, bytes) of each allocation; the negative number of bytes of each release.
        work: (FLOPs, bytes moved, `HALF`, `TF32` or `FLOAT`) of each operator that is no view.
        collectives: (name, bytes of the larger side) of each call that ranks make together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[int, int]] = []
        self.work: list[tuple[int, int, int]] = []
        self.collectives: list[tuple[str, int]] = []
        self._numbers = cast("weakref.WeakKeyDictionary[Any, int]", weakref.WeakKeyDictionary())
        self._sizes: list[int] = []
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> Tracker:
        tracker, resize = self, self._resize

        def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            """FSDP2 empties and refills storages instead of dropping them."""
            result = resize(storage, size)
            tracker._follow(storage)
            return result

        torch.UntypedStorage.resize_ = resized  # pyright: ignore[reportAttributeAccessIssue]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):  # a sharded tensor: its part is asked next
            return NotImplemented
        if func.namespace == "prim":
            return func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and func.namespace == "aten" and not _has_kernel(func.name(), "CPU"):
            # a composite operator without gradients, such as `matmul`: its parts are what computes
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._follow(tensor.untyped_storage())
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func.namespace == "c10d":
            sides = ([leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in args)
            self.collectives.append((func._opname, max(sum(map(_bytes, side)) for side in sides)))
        if func.namespace != "aten" or func.is_view or func._opname in _NO_WORK:
            return result
        flops = formula(*args, **kwargs, out_val=result) if formula else 0
        half = any(each.dtype in (torch.bfloat16, torch.float16) for each in outputs)
        how = HALF if half else TF32 if "convolution" in func._opname else FLOAT
        self.work.append((flops, sum(map(_bytes, inputs + outputs)), how))
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        number = self._numbers.get(storage)
        if number is None:
            number = self._numbers[storage] = len(self._sizes)
            self._sizes.append(0)
            weakref.finalize(storage, self._set, number, 0).atexit = False
        self._set(number, size)

    def _set(self, number: int, size: int) -> None:
        if change := size - self._sizes[number]:
            self.changes.append((number, change))
            self._sizes[number] = size

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Follow tensors that were made outside."""
        for tensor in tensors:
            self._follow(tensor.untyped_storage())

    def alive(self, kinds: Mapping[str, Iterable[Tensor]], rest: str) -> dict[str, npt.NDArray[np.int64]]:
        """Bytes alive of each kind after every change.

        Args:
            kinds: the tensors of each kind; a storage is of the first kind that names it.
            rest: the kind of all other storages.
        """
        names = [*kinds, rest]
        kind = np.full(len(self._sizes), len(kinds))
        for i, tensors in reversed([*enumerate(kinds.values())]):
            for tensor in tensors:
                if (number := self._numbers.get(tensor.untyped_storage())) is not None:
                    kind[number] = i
        changes = np.array(self.changes, dtype=np.int64).reshape(-1, 2)
        return {name: np.where(kind[changes[:, 0]] == i, changes[:, 1], 0).cumsum() for i, name in enumerate(names)}


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
