"""What frozen networks make of pictures: maps that a projector then reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fqgan.config import ProjectorConfig
from fqgan.config.data import Small
from fqgan.nets.efficientnet import load_efficientnet_lite0
from fqgan.tokenizer.model import FactorizedTokenizer

MapKind = Literal["continuous", "discrete", "network"]
NETWORK = "efficientnet-lite0"


@dataclass(frozen=True)
class MapReader:
    """A frozen network, and the pictures that it takes."""

    kind: MapKind
    size: int
    """Pixels a side of the pictures."""
    small: Small | None
    """What becomes of smaller ones; None: as the source's options say."""
    settings: dict[str, Any]
    """All that the maps depend on, beside the pictures."""
    read: Callable[[Tensor], list[Tensor]]
    """Images (b, 3, size, size) in [-1, 1] -> maps (b, c, h, w), one a factor."""


def map_kind(config: ProjectorConfig) -> MapKind:
    """The maps that a projector reads; those whose shape a blind one has."""
    return "continuous" if config.feature == "blind" else config.feature


def tokenizer_reader(
    kind: Literal["continuous", "discrete"], tokenizer: FactorizedTokenizer, size: int = 0, small: Small = "enlarge"
) -> MapReader:
    """A tokenizer's maps, one a factor: l2-normalised features before quantization, or the codes' embeddings.

    Args:
        size: pixels a side; 0: what it was trained at. `UserError` for one that its patches do not divide.
        small: what becomes of smaller pictures; `skip` refuses them too, as every caption needs its picture.
    """
    size = size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    settings = {"kind": kind, "tokenizer": tokenizer.fingerprint(), "size": size, "small": small}

    def discrete(images: Tensor) -> list[Tensor]:
        return tokenizer.embed(tokenizer.encode(images))

    return MapReader(kind, size, small, settings, tokenizer.features if kind == "continuous" else discrete)


def network_reader(size: int = 224, device: torch.device | str = "cpu") -> MapReader:
    """The packaged EfficientNet-Lite0's last map: 320 channels at stride 32. Smaller pictures are enlarged: it is what
    the tokenizer is measured against, at the size that it was trained at."""
    network = load_efficientnet_lite0().to(device)
    settings = {"kind": "network", "network": NETWORK, "size": size, "small": "enlarge"}
    return MapReader("network", size, "enlarge", settings, lambda images: [network.stages(images)[-1]])
