"""What every teacher shares: resized, normalised images in, one feature vector each out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fqgan.nets.sharing import shared
from fqgan.nets.weights import FrozenModule, converted

T = TypeVar("T")


class Teacher(FrozenModule):
    """A frozen model that turns images into one feature vector each, and into a map of such features. Subclasses give
    `features`, `feature_map` if `has_map`, and `depths`.

    It runs once for a batch, without gradient, and when training is in bf16, in bf16: networks of a model library
    hold their weights in it (half the memory), the packaged EfficientNet follows autocast. On a CPU networks with
    grouped convolutions, the packaged one among them, stay in float32. Images are always resized and normalised in
    float32.

    Attributes: `name` as in the config, `dim` of the feature, `size` in pixels a side that images are resized to.
    """

    has_map = True

    def __init__(self, name: str, dim: int, size: int):
        super().__init__()
        self.name = name
        self.dim = dim
        self.size = size

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] -> (b, dim) float32 without gradient. Images that are not square are squeezed."""
        return self.features(resize(images, self.size)).float()

    @torch.no_grad()
    def map(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) in [-1, 1] -> (b, dim, h, w) float32 without gradient, as fine as the network gives it."""
        return self.feature_map(resize(images, self.size)).float()

    def maps(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in [-1, 1] -> a map (b, c, h, w) behind each stage or block, float32, with gradient to the
        images. `UserError` for a network that has none."""
        return [each.float() for each in self.depths(resize(images, self.size))]

    def features(self, images: Tensor) -> Tensor:
        """(b, 3, size, size) float32 in [-1, 1] -> (b, dim)."""
        raise NotImplementedError

    def depths(self, images: Tensor) -> list[Tensor]:
        """(b, 3, size, size) float32 in [-1, 1] -> maps (b, c, h, w) of all depths, the first one first."""
        raise NotImplementedError

    def feature_map(self, images: Tensor) -> Tensor:
        """(b, 3, size, size) float32 in [-1, 1] -> (b, dim, h, w)."""
        raise NotImplementedError


@shared
def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic resize to (b, 3, size, size), in float32 and kept in [-1, 1] as PIL does."""
    images = images.float()
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


class NetworkTeacher(Teacher):
    """A network of a model library with its own normalisation of the pixels.

    The pixels are normalised in float32; the network computes in the type of its weights, whatever autocast is on.

    Args:
        read: (network, normalised images) -> the feature (b, dim), and the map (b, dim, h, w) or None.
        read_depths: the same -> the map (b, c, h, w) behind each block.
        mean, std: of the three channels, for pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        read: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]],
        read_depths: Callable[[nn.Module, Tensor], list[Tensor]],
        dim: int,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        has_map: bool = True,
    ):
        super().__init__(name, dim, size)
        self.has_map = has_map
        self.network, self.read, self.read_depths = network, read, read_depths
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.freeze()

    def features(self, images: Tensor) -> Tensor:
        return self.outputs(images)[0]

    def feature_map(self, images: Tensor) -> Tensor:
        found = self.outputs(images)[1]
        assert found is not None, "has_map"
        return found

    @shared
    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, 3, size, size) -> feature and map, in one pass for both within `sharing`."""
        return self._run(self.read, images)

    def depths(self, images: Tensor) -> list[Tensor]:
        return self._run(self.read_depths, images)

    def _run(self, read: Callable[[nn.Module, Tensor], T], images: Tensor) -> T:
        pixels = ((images + 1) / 2 - self.mean) / self.std
        with torch.autocast(images.device.type, enabled=False):
            return read(self.network, pixels.to(next(self.network.parameters()).dtype))


def held(network: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """A frozen network with its weights in bf16 if `precision` says so, on a CPU only where that is faster.

    Grouped convolutions are up to twice as slow there in bf16; everything else is faster.
    """
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    dtype = torch.float32 if precision == "float32" or (device.type == "cpu" and grouped) else torch.bfloat16
    return converted(network, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
