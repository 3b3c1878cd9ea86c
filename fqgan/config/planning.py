"""What `plan` takes beside a run's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fqgan.base.errors import UserError
from fqgan.config.ranges import at_least

MOST_GPUS = 1024


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The machines that a run is planned for."""

    gpus: int = 1
    """Number of GPUs, up to 1,024."""
    gpu: str = "h100"
    """Kind of GPU: h100, h200, a100-40, a100-80, 4090, l4, or GB:TFLOPS:GBPS (memory, dense bf16 arithmetic and memory
    bandwidth) of another one."""
    node: int = 8
    """Number of GPUs in a machine."""
    network: float = 50.0
    """GB/s from each GPU to other machines."""
    crops: Literal["center", "flip", "ten"] = "ten"
    """Crops of each image in the token store, as in `extract`."""

    def check_machines(self) -> None:
        """Raise `UserError` for machines that cannot be."""
        at_least(1, gpus=self.gpus, node=self.node)
        if self.gpus > MOST_GPUS:
            raise UserError(f"gpus must be at most {MOST_GPUS:,}, got {self.gpus:,}")
        if not 0 < self.network < float("inf"):
            raise UserError(f"network must be above 0, got {self.network:g}")
