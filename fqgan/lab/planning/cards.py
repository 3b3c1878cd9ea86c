"""GPUs: their memory and speed, as their makers state them, and how fast they and their networks move data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.lab.planning.tracking import FLOAT, HALF, TF32

GIB = 2**30
RESERVED, FRAGMENTED = 1.5 * GIB, 0.05
"""What of a GPU's memory is not for tensors: bytes for CUDA, cuDNN and NCCL, and a share that lies between tensors."""
BEST, USUAL = 0.75, 0.4
"""Shares of an operator's limit, arithmetic or memory traffic, that good and usual kernels reach."""
LAUNCH = 8e-6
"""Seconds in which Python starts one operator: a GPU that is done sooner waits."""
_NETWORK_SHARE = 0.7
"""Share of a network's stated speed that collectives reach."""
_HOP = 5e-6
"""Seconds of a message's way."""


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
        memory: GiB that torch sees.
        tflops: dense TFLOP/s in bf16, in float32 as TF32, in float32.
        bandwidth: GB/s of its memory.
        link: GB/s to the other GPUs of its machine, in one direction.
    """

    name: str
    memory: float
    tflops: tuple[float, float, float]
    bandwidth: float
    link: float

    @property
    def usable(self) -> float:
        """Bytes for tensors."""
        return (self.memory * GIB - RESERVED) / (1 + FRAGMENTED)

    def seconds(self, work: npt.NDArray[np.int64]) -> float:
        """What operators take at their limits, each by itself: (n, 3) FLOPs, bytes moved, how it computes."""
        rates = np.array([self.tflops[how] for how in (HALF, TF32, FLOAT)]) * 1e12
        return float(np.maximum(work[:, 0] / rates[work[:, 2]], work[:, 1] / (self.bandwidth * 1e9)).sum())


CARDS = {
    "h100": Card("H100 SXM", 79.1, (989, 495, 67), 3350, 450),
    "h200": Card("H200 SXM", 139.8, (989, 495, 67), 4800, 450),
    "a100-40": Card("A100 40 GB", 39.4, (312, 156, 19.5), 1555, 300),
    "a100-80": Card("A100 80 GB", 79.2, (312, 156, 19.5), 2039, 300),
    "4090": Card("RTX 4090", 23.6, (165, 82.6, 82.6), 1008, 25),
    "l4": Card("L4", 22.0, (121, 60, 30.3), 300, 25),
}


def card(text: str) -> Card:
    """A card by name, or `GB:TFLOPS:GBPS`: memory, dense bf16 and memory bandwidth of another one. `UserError` for
    anything else."""
    if text.lower() in CARDS:
        return CARDS[text.lower()]
    try:
        memory, tflops, bandwidth = map(float, text.split(":"))
        if not all(0 < each < math.inf for each in (memory, tflops, bandwidth)):
            raise ValueError
    except ValueError:
        known = f"there are {', '.join(CARDS)}, and GB:TFLOPS:GBPS for others, such as 80:989:3350"
        raise UserError(f"unknown --gpu {text!r}{did_you_mean(text.lower(), CARDS)}; {known}") from None
    return Card(text, memory * 1e9 / GIB, (tflops, tflops / 2, tflops / 16), bandwidth, 25)


@dataclass(frozen=True)
class Collective:
    """Calls of one kind that all ranks make together in a step.

    Attributes:
        name: of what is sent.
        count: calls.
        size: bytes of all calls, of the side that is whole.
        trips: how often every byte is sent: 2 where a sum comes back.
        seconds: on the network.
    """

    name: str
    count: int
    size: int
    trips: int
    seconds: float


def collective(
    name: str, sizes: Sequence[int], trips: int, gpus: int, node: int, link: float, network: float
) -> Collective:
    """What calls of these sizes take: within machines and, at the same time, between them, where each GPU moves its
    share of what its machine sends.

    Args:
        node: GPUs of a machine.
        link, network: GB/s of a GPU to those of its machine, and to other machines.
    """
    size, near = sum(sizes), min(gpus, node)
    machines = -(-gpus // node)
    inside = size * (near - 1) / near / (link * 1e9)
    between = size * (machines - 1) / machines / (near * network * 1e9)
    hops = len(sizes) * math.ceil(math.log2(max(2, gpus))) * _HOP
    return Collective(name, len(sizes), size, trips, trips * (max(inside, between) / _NETWORK_SHARE + hops))
