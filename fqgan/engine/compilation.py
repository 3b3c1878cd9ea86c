"""torch.compile where it works, with one warning where it does not."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from torch import nn

from fqgan.base.printing import say
from fqgan.engine.distributed import all_reduce_sum


def compile_parts(parts: Iterable[nn.Module], device: torch.device) -> bool:
    """torch.compile modules in place; names of weights stay.

    Where compiling does not work, on whichever rank, one warning says so and nothing is compiled. Returns whether it
    was done.
    """
    problem = compile_problem(device)
    if all_reduce_sum(torch.tensor(float(bool(problem)), device=device)):
        reason = problem or "it fails on another rank"
        say(f"fqgan: warning: train.compile has no effect here, torch.compile fails: {reason}", error=True)
        return False
    for part in parts:
        part.compile()
    return True


def compile_problem(device: torch.device) -> str:
    """Why nothing can be compiled for a device, in a line; empty if a small function can."""
    salt = random.SystemRandom().randrange(2**31)  # a constant that no cache of compiled code has seen
    try:
        compiled = torch.compile(lambda x: (x * 2 + salt).relu(), dynamic=False)
        compiled(torch.ones(64, device=device))
    except Exception as error:  # whatever the compiler and its helpers raise
        torch.compiler.reset()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ""
