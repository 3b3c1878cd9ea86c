"""What the metrics that are sums over samples share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import as_tensor
from fqgan.engine.devices import exact_device

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks, possibly in place, and returns it: `fqgan.engine.distributed.all_reduce_sum`."""


class Sums:
    """A metric whose state is one tensor of sums; adding up the states of ranks or runs merges them.

    Sums in float64 of a device without it are on the CPU.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | str):
        device = exact_device(device) if dtype == torch.float64 else device
        self._sums = torch.zeros(size, dtype=dtype, device=device)

    def state(self) -> Tensor:
        """A copy of the sums."""
        return self._sums.clone()

    def load_state(self, state: Tensor) -> None:
        """Take over sums from `state()`; those of another size raise `UserError`."""
        state = as_tensor(state, "state")
        if state.shape != self._sums.shape:
            raise UserError(f"state of {tuple(state.shape)} values for a metric of {tuple(self._sums.shape)}")
        self._sums.copy_(state)

    def reset(self) -> None:
        """Forget everything."""
        self._sums.zero_()

    def _total(self, all_reduce: AllReduce | None) -> Tensor:
        return all_reduce(self.state()) if all_reduce else self._sums
