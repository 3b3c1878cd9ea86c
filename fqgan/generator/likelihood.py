"""What a generator says of codes that are there: bits, and the class that explains them best."""

from __future__ import annotations

import torch
from torch import Tensor

from fqgan.generator.model import FAR


@torch.inference_mode()
def bits_of(generator: FAR, codes: Tensor, labels: Tensor) -> Tensor:
    """(b, k, h, w) float64 on the CPU: what each code takes, in bits, under its class; -1: under none."""
    return -generator.log_likelihood(codes, labels).cpu().double()


def class_bits(generator: FAR, codes: Tensor, batch: int) -> Tensor:
    """(b, num_classes) float64 on the CPU: what images' codes take, in bits, under each class; `batch` pairs of image
    and class at a time."""
    classes = generator.config.num_classes
    pairs = torch.arange(len(codes) * classes).split(batch)
    bits = [bits_of(generator, codes[part // classes], part % classes).sum((1, 2, 3)) for part in pairs]
    return torch.cat(bits).view(-1, classes)
