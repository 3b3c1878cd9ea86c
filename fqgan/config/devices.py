"""The devices that commands compute on."""

from typing import Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
"""auto: CUDA where there is one, else Apple's GPU (mps), else the CPU."""
