"""What training computes in."""

from __future__ import annotations

from typing import Literal

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast, or none for `float32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16. A CPU without (AVX-512 or AMX on x86) converts each operation's numbers to
    and fro, and trains a tokenizer at a tenth of float32's speed."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fast_precision(device: torch.device) -> Literal["bf16", "float32"]:
    """bf16 where the device has it."""
    return "bf16" if has_bf16(device) else "float32"
