"""`fqgan reconstruct CKPT IMAGE... --out DIR`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, write_bytes
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.config.ranges import at_least
from fqgan.models import hub

PROG = "fqgan reconstruct"


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, one of its checkpoints, an exported tokenizer, a released file, or hf:org/name."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE ...")]
    """Picture files."""
    out: Path = Path("reconstructions")
    """Folder for a PNG and the codes (.npz) of each picture."""
    size: int = 0
    """Pixels a side of the centre crop; 0: the size that the tokenizer was trained on."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Moving average (auto: where there is one) or raw weights."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: about twice as fast where the hardware has it; some codes change. Quantizers stay in float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(
        Arguments,
        argv,
        PROG,
        "Pictures through a tokenizer and back: original, reconstruction, each "
        "factor alone (Fig. 3); their codes and PSNR.",
    )
    if not arguments.images:
        raise UserError(f"name at least one picture: {PROG} CHECKPOINT PICTURE ... --out DIR")
    at_least(0, size=arguments.size)
    check_output(arguments.out, folder=True, inputs=[arguments.checkpoint, *arguments.images])
    checkpoint = hub.local(arguments.checkpoint)
    import numpy as np
    import torch

    from fqgan.data.images import load_images
    from fqgan.engine.allocator import keep_freed_memory
    from fqgan.engine.distributed import pick_device
    from fqgan.engine.memory import check_pictures
    from fqgan.metrics.psnr import psnr
    from fqgan.tokenizer.model import load_tokenizer
    from fqgan.tokenizer.pictures import reconstruction_rows, row_of, save_picture

    keep_freed_memory()
    device = pick_device(arguments.device)
    tokenizer = load_tokenizer(checkpoint, device, arguments.weights, arguments.precision)
    size = arguments.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    check_pictures(1, size, tokenizer.config.channels, device)
    # all pictures are read before anything is written, so that a bad one leaves nothing half done
    images = load_images(arguments.images, size)
    names = [factor.name for factor in tokenizer.config.factors]
    columns = ["original", "reconstruction", *([f"{name} alone" for name in names] if len(names) > 1 else [])]
    say(f"columns: {', '.join(columns)}")
    stems = _distinct(arguments.images)
    for path in (arguments.out / f"{stem}.png" for stem in stems):
        if path.exists() and not path.with_suffix(".npz").exists():
            raise UserError(f"--out {arguments.out} holds a {path.name} of another origin: choose another folder")
    make_folder(arguments.out)
    for stem, image in zip(stems, images.split(1), strict=True):
        image = image.to(device)
        with torch.inference_mode():
            codes = tokenizer.encode(image)
            rows = reconstruction_rows(tokenizer, codes)
        save_picture(row_of([image, *rows]), arguments.out / f"{stem}.png")
        buffer = io.BytesIO()
        np.savez(buffer, codes=codes[0].cpu().numpy(), factors=np.array(names))
        write_bytes(arguments.out / f"{stem}.npz", buffer.getvalue())
        say(f"{arguments.out / stem}.png  PSNR {psnr(image, rows[0]).item():.2f} dB")
    say(arguments.out)


def _distinct(paths: tuple[Path, ...]) -> list[str]:
    """File stems, numbered where two pictures share one."""
    stems: list[str] = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems
