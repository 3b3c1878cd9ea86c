"""Picture files as a batch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config.data import Small
from fqgan.data.decode import decode_image
from fqgan.data.transforms import center_crop, fits, normalize, to_tensor


def load_images(paths: str | Path | Iterable[str | Path], size: int = 256, small: Small = "enlarge") -> Tensor:
    """Read one picture file or several -> (b, 3, size, size) float32 in [-1, 1], ADM centre crops.

    Args:
        small: what becomes of pictures whose shorter side is below `size` pixels: they are enlarged, or refused (also
            where the word is `skip`, as a caller counts on one image a path).

    Raises:
        UserError: a file is missing, unreadable, or refused.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise UserError("no picture to load: the list of paths is empty")
    return normalize(torch.stack([to_tensor(center_crop(_read(file, size, small), size)) for file in files]))


def _read(file: Path, size: int, small: Small) -> Image.Image:
    image = decode_image(file, str(file))
    fits(image, size, "enlarge" if small == "enlarge" else "refuse", str(file))
    return image
