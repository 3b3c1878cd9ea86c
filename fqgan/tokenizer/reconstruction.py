"""Pictures through a tokenizer and back."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, write_bytes
from fqgan.base.printing import say
from fqgan.config.verbs import ReconstructionSettings
from fqgan.data.loader import load_images
from fqgan.engine.distributed import World
from fqgan.engine.sizes import check_pictures
from fqgan.metrics.psnr import psnr
from fqgan.tokenizer.model import load_tokenizer
from fqgan.tokenizer.pictures import reconstruction_rows, row_of, save_picture


@dataclass(frozen=True)
class Reconstructed:
    """A folder of reconstructions."""

    out: Path
    columns: tuple[str, ...]
    """What stands beside each other in a picture: original, reconstruction, each factor alone."""
    psnr: dict[Path, float]
    """Of each picture written, in dB. The codes lie beside it, under the same name with .npz."""


def reconstruct(settings: ReconstructionSettings, world: World) -> Reconstructed:
    """Reconstruct pictures: originals, reconstructions and each factor alone (Fig. 3) as PNG, and the codes as .npz.

    Raises:
        UserError: pictures that cannot be read, before anything is written; a folder that holds pictures of another
            origin, or cannot be written.
    """
    settings.check()
    device, out = world.device, settings.out
    tokenizer = load_tokenizer(settings.checkpoint, device, settings.weights, settings.precision)
    size = settings.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    check_pictures(1, size, tokenizer.config.channels, device)
    # all pictures are read before anything is written, so that a bad one leaves nothing half done
    images = load_images(settings.images, size)
    names = [factor.name for factor in tokenizer.config.factors]
    columns = ("original", "reconstruction", *([f"{name} alone" for name in names] if len(names) > 1 else []))
    say(f"columns: {', '.join(columns)}")
    paths = [out / f"{stem}.png" for stem in _distinct(settings.images)]
    for path in paths:
        if path.exists() and not path.with_suffix(".npz").exists():
            raise UserError(f"--out {out} holds a {path.name} of another origin: choose another folder")
    make_folder(out)
    found: dict[Path, float] = {}
    for path, image in zip(paths, images.split(1), strict=True):
        image = image.to(device)
        with torch.inference_mode():
            codes = tokenizer.encode(image)
            rows = reconstruction_rows(tokenizer, codes)
        save_picture(row_of([image, *rows]), path)
        buffer = io.BytesIO()
        np.savez(buffer, codes=codes[0].cpu().numpy(), factors=np.array(names))
        write_bytes(path.with_suffix(".npz"), buffer.getvalue())
        found[path] = psnr(image, rows[0]).item()
        say(f"{path}  PSNR {found[path]:.2f} dB")
    return Reconstructed(out, columns, found)


def _distinct(paths: Sequence[Path]) -> list[str]:
    """File stems, numbered where two pictures share one."""
    stems: list[str] = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems
