"""PatchGAN: a convolutional discriminator that judges overlapping patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class PatchGAN(nn.Module):
    """4x4 convolutions, `layers` + 1 of them of stride 2 or 1, to one logit a patch.

    (b, 3, H, W) in [-1, 1] -> (b, 1, h, w); 256 pixels and 3 layers give 30 x 30.

    Args:
        channels: width after the first convolution; doubles with each layer up to eight times it.
        layers: convolutions of stride 2 (the first included).
        norm: `batch` (the released models') or `group`, which does not depend on the other images.
    """

    def __init__(self, channels: int = 64, layers: int = 3, norm: str = "batch"):
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            main += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]) if norm == "batch" else nn.GroupNorm(32, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        main.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*main)
        self.apply(_initialize)

    def forward(self, *batches: Tensor) -> list[Tensor]:
        """Logits of each batch of images; batches are normalised apart from each other."""
        return [self.main(images) for images in batches]


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


@contextmanager
def as_critic(discriminator: nn.Module) -> Iterator[nn.Module]:
    """The discriminator for the generator's phase: no gradient to its weights, running statistics untouched."""
    norms = [m for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    discriminator.requires_grad_(False)
    for norm in norms:
        norm.track_running_stats = False  # in training mode: batch statistics, nothing recorded
    try:
        yield discriminator
    finally:
        discriminator.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
