"""The device of a name, and what its kind lacks."""

from __future__ import annotations

import torch
from torch import Tensor

from fqgan.base.errors import UserError, brief

_WITHOUT_FLOAT64 = ("mps",)


def pick_device(name: str | torch.device) -> torch.device:
    """The device of a name; `auto`: CUDA where there is one, else Apple's GPU (`mps`), else the CPU. Unknown ones, and
    those that are not there, raise `UserError`."""
    if isinstance(name, str) and name == "auto":
        kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        return torch.device(next(kind for kind, there in kinds.items() if there))
    try:
        device = torch.device(name)
        if device.type == "cpu":
            return torch.device("cpu")
        if device.type not in ("cuda", "mps"):
            torch.empty(1, device=device).item()
    except (RuntimeError, TypeError, AssertionError, ImportError):
        raise UserError(
            f"device must be auto, cpu, cuda, mps, or another that torch finds here, got {brief(name)}"
        ) from None
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("no MPS device (Apple's GPU) is available: choose the device cpu or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available: choose the device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no {device}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return device


def exact_device(device: torch.device | str) -> torch.device:
    """Where float64 numbers that belong to a device are kept: on the CPU if the device has none, as Apple's GPU."""
    device = torch.device(device)
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device. CUDA takes a pinned one in while the caller goes on."""
    # MPS would read the tensor of such a copy even after it is freed (pytorch#189690)
    return tensor.to(device, non_blocking=device.type == "cuda")


def device_name(device: torch.device) -> str:
    """What a device is, in a few words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return "Apple GPU (MPS)" if device.type == "mps" else device.type
