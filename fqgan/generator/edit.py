"""Pictures of which some codes stay and others are drawn again, or come from another picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fqgan.base.classes import drawn_classes
from fqgan.base.errors import UserError
from fqgan.base.files import write_bytes, write_text
from fqgan.base.folder import ResumableFolder
from fqgan.base.inputs import Numbers, as_codes, as_count, as_factors
from fqgan.base.printing import say
from fqgan.base.schema import FORMAT_VERSION, load_json, to_dict
from fqgan.config.editing import EditingSettings
from fqgan.data.loader import load_images
from fqgan.engine.distributed import World
from fqgan.generator.likelihood import class_bits
from fqgan.generator.model import FAR, load_generator
from fqgan.metrics.psnr import psnr
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.pictures import grid_of, save_picture
from fqgan.tokenizer.protocol import Tokenizer

MANIFEST, GRID, CODES = "edit.json", "grid.png", "codes.npz"
_CLASSIFIED = 100
"""Classes up to which a picture's own is looked for."""


@dataclass(frozen=True)
class Edited:
    """A folder of edited pictures."""

    out: Path
    """Holds 000000.png and so on, grid.png, edit.json and codes.npz."""
    codes: Tensor
    """(n, k, h, w) int64."""
    label: int
    """Class that was drawn for; -1: none."""


def kept_mask(
    grid: Sequence[int],
    names: Sequence[str],
    keep: Sequence[str | int] = (),
    region: Sequence[float] | None = None,
    *,
    cell: int = 1,
) -> Tensor:
    """Which codes stay, (k, h, w) bool: those of the factors `keep`, and those where the region does not reach.

    Args:
        names: of the factors.
        keep: factors by name or number.
        region: x0, y0, x1, y1 in pixels, the ends not among them; None: everything is drawn again but `keep`.
        cell: pixels a side of one position.

    Raises:
        UserError: factors that are none, and regions that are empty or not within the picture.
    """
    height, width = grid
    mask = torch.zeros(len(names), height, width, dtype=torch.bool)
    if region is not None:
        x0, y0, x1, y1 = region
        if not (0 <= x0 < x1 <= width * cell and 0 <= y0 < y1 <= height * cell):
            raise UserError(
                f"the region {x0},{y0},{x1},{y1} must be x0,y0,x1,y1 with x0 < x1 <= {width * cell} and "
                f"y0 < y1 <= {height * cell}"
            )
        mask[:] = True
        mask[:, int(y0 // cell) : int(-(-y1 // cell)), int(x0 // cell) : int(-(-x1 // cell))] = False
    mask[as_factors(list(keep), names)] = True
    return mask


def mixed(
    codes: Tensor,
    other: Tensor,
    names: Sequence[str],
    take: Sequence[str | int],
    start: int = 0,
    end: int | None = None,
) -> Tensor:
    """Codes (k, h, w) with those of the factors `take` from another picture's, at the positions from start up to end.

    Args:
        end: None: the last one, too.

    Raises:
        UserError: factors and positions that are none.
    """
    result = codes.clone().flatten(1)
    start = as_count(start, "from", 0, result.shape[1])
    end = result.shape[1] if end is None else as_count(end, "to", 0, result.shape[1])
    if start > end:
        raise UserError(f"the mix goes from position {start} to {end}: the first must not be the larger one")
    chosen = as_factors(list(take), names)
    result[chosen, start:end] = other.flatten(1)[chosen, start:end].to(codes.device)
    return result.view_as(codes)


@torch.no_grad()
def redraw(
    generator: FAR,
    codes: Numbers,
    mask: Tensor,
    label: int,
    num: int = 1,
    seed: int = 0,
    *,
    first_image: int = 0,
    best_of: int = 1,
    batch: int = 16,
    **options: Any,
) -> Tensor:
    """Codes (num, k, h, w) int64 in which those of a picture stay where the mask is true, and the others are drawn.

    What is drawn sees the class and all codes before it, in raster order and within a position in the order of the
    factors; nothing of what lies behind. So of `best_of` draws `likeliest` takes one.

    Args:
        codes: (k, h, w) of the picture.
        mask: (k, h, w) bool.
        label: class; -1: none.
        seed, first_image: image i is drawn from the streams (seed, j) with j from best_of * (first_image + i) on.
        batch: pictures that are drawn together.
        options: as in `SamplingConfig`.

    Raises:
        UserError: codes, masks, labels or settings that are none.
    """
    device = generator.class_embedding.weight.device
    codes = as_codes(torch.as_tensor(codes)[None], generator.config.codebook_sizes, device, grid=generator.config.grid)
    mask = torch.as_tensor(mask)[None]
    total = num * best_of
    options |= {"given": codes, "mask": mask, "batch": min(batch, total), "first_image": first_image * best_of}
    drawn = generator.generate([label] * total, seed=seed, **options)
    return drawn if best_of == 1 else drawn[likeliest(generator, drawn, mask[0], [label] * total, best_of, batch)]


@torch.no_grad()
def likeliest(
    generator: FAR, drawn: Tensor, mask: Tensor, labels: Sequence[int], best_of: int, batch: int = 16
) -> Tensor:
    """(n,) int64 on the CPU: of each `best_of` draws in a row, the index of the one to take.

    That is the one under which the given codes behind the first drawn one are likeliest: the generator saw nothing of
    them when it drew. Where no given code lies behind a drawn one, it is the one whose codes are likeliest altogether;
    where nothing is drawn, the first.

    Args:
        drawn: codes (n * best_of, k, h, w).
        mask: (k, h, w) bool, true where codes are given.
        labels: class of each draw; -1: none.
        batch: draws that are scored together.
    """
    given = mask.cpu().flatten(1).T  # (positions, k): as a generator draws, once it is flat
    if given.all():
        return torch.arange(0, len(drawn), best_of)
    behind = given & ((~given).flatten().cumsum(0) > 0).view_as(given)
    counted = behind if behind.any() else torch.ones_like(given)
    counted = counted.T.view(mask.shape).to(generator.class_embedding.weight.device)
    parts = zip(drawn.split(batch), torch.as_tensor(labels).split(batch), strict=True)
    scores = torch.cat([(generator.log_likelihood(part, own) * counted).sum((1, 2, 3)) for part, own in parts])
    return torch.arange(0, len(drawn), best_of) + scores.view(-1, best_of).argmax(1).cpu()


def edit(settings: EditingSettings, world: World) -> Edited:
    """Edit a picture.

    Raises:
        UserError: settings that contradict each other, factors, classes and regions that are none, pictures that cannot
            be read, a folder that holds something else or other edits.
    """
    settings.check()
    if world.size > 1:
        raise UserError("one process edits a picture: start it without torchrun")
    generator = load_generator(
        settings.checkpoint, world.device, settings.weights, settings.precision, settings.tokenizer or None
    )
    settings.check(generator.config.codebook_sizes)
    tokenizer, grid = generator.tokenizer, generator.config.grid
    names = [factor.name for factor in tokenizer.config.factors]
    size, side = grid[0] * tokenizer.config.downsampling, grid[1] * tokenizer.config.downsampling
    if size != side:
        raise UserError(f"the generator's grid is {grid[0]} x {grid[1]}: pictures are edited at square grids")
    sources = [settings.picture, *([settings.mix] if settings.take else [])]
    images = load_images(sources, size).to(world.device)
    with torch.inference_mode():
        found = tokenizer.encode(images)
    codes = mixed(found[0], found[1], names, settings.take) if settings.take else found[0]
    mask = torch.ones(codes.shape, dtype=torch.bool)
    if settings.draws:
        mask = kept_mask(grid, names, settings.keep, _region(settings.region), cell=tokenizer.config.downsampling)
    label = _class_of(settings, generator, codes) if settings.draws else -1
    _announce(settings, generator, mask, label, psnr(images[:1], _decoded(tokenizer, found[:1])).item())
    drawn = codes[None].cpu()
    folder = _begun(settings, generator, mask, label)
    try:
        if settings.draws:
            some = {"num": settings.num, "seed": settings.seed, "best_of": settings.best_of, "batch": settings.batch}
            drawn = redraw(generator, codes, mask, label, **some, **settings.values).cpu()
        _write(settings.out, tokenizer, images, found, drawn, mask)
    finally:
        folder.release(finished=True)
    return Edited(settings.out, drawn, label)


def _region(text: str) -> list[int] | None:
    if not text:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"--region must be x0,y0,x1,y1 in whole pixels, got {text!r}")
    return numbers


def _class_of(settings: EditingSettings, generator: FAR, codes: Tensor) -> int:
    count, names = generator.config.num_classes, generator.label_names
    if settings.classes == "auto" and "auto" not in names:
        if not 0 < count <= _CLASSIFIED:
            return -1
        return int(class_bits(generator, codes[None], settings.batch).argmin())
    classes = drawn_classes(settings.classes, count, names)
    if len(classes) != 1:
        raise UserError(f"--classes must be one class, or none, got {len(classes)}")
    return classes[0]


def _announce(settings: EditingSettings, generator: FAR, mask: Tensor, label: int, quality: float) -> None:
    names = generator.label_names
    told = "no class" if label < 0 else f"class {names[label] if label < len(names) else label}"
    if settings.classes == "auto" and label >= 0:
        told += ", the likeliest"
    drawn = int((~mask).sum())
    say(f"reconstruction of the picture: PSNR {quality:.2f} dB")
    say(f"{drawn:,} of {mask.numel():,} codes are drawn" + (f", for {told}" if drawn else ": the others' stand"))


@torch.inference_mode()
def _decoded(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    return torch.cat([tokenizer.decode(part.to(tokenizer.device)) for part in codes.split(16)])


def _begun(settings: EditingSettings, generator: FAR, mask: Tensor, label: int) -> ResumableFolder:
    """The folder, taken before anything is drawn; `UserError` where it holds something else."""
    out = settings.out
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings": {**to_dict(settings), "checkpoint": str(settings.checkpoint), "picture": str(settings.picture)},
        "generator": weights_fingerprint(generator.state_dict()),
        "tokenizer": generator.tokenizer.fingerprint(),
        "label": label,
        "drawn": int((~mask).sum()),
    }
    manifest = json.loads(json.dumps(manifest, default=str))
    folder = ResumableFolder(out, kind="folder of edited pictures", known=(out / MANIFEST).exists, beside=[MANIFEST])
    folder.check_own()
    if (out / MANIFEST).exists():
        folder.changed(load_json(out / MANIFEST), manifest)
    folder.take()
    write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return folder


def _write(out: Path, tokenizer: Tokenizer, images: Tensor, found: Tensor, drawn: Tensor, mask: Tensor) -> None:
    pictures = _decoded(tokenizer, drawn)
    for i, picture in enumerate(pictures):
        save_picture(picture, out / f"{i:06d}.png")
    shown = [*images.split(1), *_decoded(tokenizer, found).split(1), *pictures.split(1)]
    blank = [torch.ones_like(shown[0])] * (-len(shown) % 4)
    cells = torch.cat([each.to(images.device) for each in (*shown, *blank)])
    save_picture(grid_of(list(cells.split(4))), out / GRID)
    buffer = io.BytesIO()
    np.savez(buffer, original=found.cpu().numpy(), codes=drawn.numpy(), mask=mask.numpy())
    write_bytes(out / CODES, buffer.getvalue())
