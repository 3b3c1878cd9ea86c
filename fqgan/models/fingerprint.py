"""What tells one tokenizer from another: codes of one mean nothing to the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import torch
from torch import Tensor

_HEAD = re.compile(r"branches\.\d+\.(head|spatial)\.")


def weights_fingerprint(tensors: Mapping[str, Tensor], meaning: str = "") -> str:
    """sha256 in hex over a tokenizer's state dict: every tensor's name, shape and float32 values, little-endian, in the
    order of the names.

    Heads that predict teachers don't count: only training uses them, and some files leave them out. Storing weights in
    another order, layout or file format changes nothing.

    Args:
        meaning: what changes the codes and cannot be read from the tensors, such as the levels of `fsq`.
    """
    digest = hashlib.sha256(meaning.encode())
    for name in sorted(name for name in tensors if not _HEAD.match(name)):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
        digest.update(f"{name} {'x'.join(map(str, values.shape))}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
