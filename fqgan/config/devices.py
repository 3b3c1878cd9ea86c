"""The devices that commands compute on."""

from typing import Annotated, Literal

import tyro

Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    tyro.conf.arg(help="Device to compute on; auto: CUDA where there is one, else Apple's GPU (mps), else the CPU."),
]
