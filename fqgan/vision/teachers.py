"""Teachers: frozen vision models whose features the factors learn to predict (paper section 3.2.2)."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from fqgan.errors import UserError
from fqgan.schema import did_you_mean
from fqgan.vision.efficientnet import POOLED_DIM, load_efficientnet_lite0
from fqgan.vision.frozen import FrozenModule

LATER_PREFIXES = ("clip:", "dinov2:", "timm:")
OPTION = "--model.factors.1.teacher efficientnet-lite0"


class Teacher(FrozenModule):
    """A frozen model that turns images into one feature vector each. Subclasses give `features`.

    Attributes: `name` as in the config, `dim` of the feature, `size` in pixels a side that images are resized to.
    """

    def __init__(self, name: str, dim: int, size: int):
        super().__init__()
        self.name = name
        self.dim = dim
        self.size = size

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] -> (b, dim) float32 without gradient. Images that are not square are squeezed."""
        return self.features(resize(images, self.size)).float()

    def features(self, images: Tensor) -> Tensor:
        """(b, 3, size, size) float32 in [-1, 1] -> (b, dim)."""
        raise NotImplementedError


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic resize to (b, 3, size, size), in float32 and kept in [-1, 1] as PIL does."""
    images = images.float()
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


class EfficientNetTeacher(Teacher):
    """The pooled feature of the packaged EfficientNet-Lite0."""

    def __init__(self, name: str = "efficientnet-lite0", size: int = 224):
        super().__init__(name, POOLED_DIM, size)
        self.network = load_efficientnet_lite0()
        self.freeze()

    def features(self, images: Tensor) -> Tensor:
        return self.network.pooled(images)


def load_teacher(name: str) -> Teacher:
    """The teacher of a name: `efficientnet-lite0`, or `efficientnet-lite0@96` for another input size in pixels.

    A small input bounds the compute on a CPU. Unknown names and sizes below 32 pixels raise `UserError`.
    """
    if name.startswith(LATER_PREFIXES):
        raise UserError(f"teacher {name!r}: this version of fqgan has efficientnet-lite0 only; pass {OPTION}")
    known = re.fullmatch(r"efficientnet-lite0(?:@(\d+))?", name)
    if not known:
        raise UserError(f"unknown teacher {name!r}{did_you_mean(name, ['efficientnet-lite0'])}; pass {OPTION}")
    size = int(known[1] or 224)
    if size < 32:
        raise UserError(f"teacher {name!r}: the input must be at least 32 pixels a side")
    return EfficientNetTeacher(name, size)
