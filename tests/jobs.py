"""A job for processes of their own, in a module that they import fast."""

from __future__ import annotations

import os
from pathlib import Path

from fqgan.base.errors import UserError


def write_gpus(job: str) -> None:
    """Write the GPUs that this process sees to the file `job`."""
    if job == "bad":
        raise UserError("a bad job")
    Path(job).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
