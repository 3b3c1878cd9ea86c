"""Random weights in the names and shapes of FID's Inception."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models.inception import Inception3


def save_random_inception(path: Path) -> Path:
    """A file as pytorch-fid's and torch-fidelity's, with weights that keep the size of activations."""
    with torch.device("meta"):
        shapes = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in shapes.items():
        if tensor.ndim == 0:
            weights[name] = torch.tensor(0)
            continue
        values = torch.empty(tensor.shape).normal_(generator=random)
        if name.endswith(("running_var", "bn.weight")):
            values = 1 + 0.2 * values.clamp(-2, 2)
        elif tensor.ndim == 1:
            values *= 0.1
        else:
            values *= (2 / values[0].numel()) ** 0.5
        weights[name] = values
    torch.save(weights, path)
    return path
