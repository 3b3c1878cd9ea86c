"""Pictures through a tokenizer and back."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, replacing, write_text, writing
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.config import SourceOptions
from fqgan.config.verbs import ReconstructionSettings
from fqgan.data.loader import PictureSet
from fqgan.data.several import open_several
from fqgan.data.transforms import to_uint8
from fqgan.data.unreadable import Omissions
from fqgan.data.workers import load
from fqgan.engine.distributed import World
from fqgan.engine.sizes import check_memory
from fqgan.metrics.psnr import PSNR
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.pictures import to_image
from fqgan.tokenizer.protocol import Tokenizer
from fqgan.tokenizer.whole import decode_strips, encode_tiled, fit, tiles

LEFT_OUT = "left_out.json"
_BORDER = 2  # white pixels around the pictures that stand beside each other


@dataclass(frozen=True)
class Reconstructed:
    """A folder of reconstructions."""

    out: Path
    columns: tuple[str, ...]
    """What stands beside each other in a picture: original, reconstruction, each factor alone."""
    psnr: dict[Path, float]
    """Of each picture written, in dB, over its own pixels. The codes lie beside it, under the same name with .npz."""
    left_out: tuple[str, ...]
    """What is wrong with each picture that could not be read."""


def reconstruct(settings: ReconstructionSettings, world: World) -> Reconstructed:
    """Reconstruct pictures: originals, reconstructions and each factor alone (Fig. 3) as PNG, and the codes as .npz.

    An .npz holds `codes` (k, h, w), or the `latents` (c, h, w) of a tokenizer without codes, the names of the
    `factors`, `size` (height and width of the reconstruction, at the top left of what the codes decode to), `own_size`
    (of the picture as it was read) and `tile` (0: one piece).

    Raises:
        UserError: before anything is written, where pictures that were named are missing or have no readable header,
            or where the folder holds pictures of another origin or cannot be written. Later, where too many pictures,
            or all of them, cannot be read; what was written until then is whole.
    """
    settings.check()
    tokenizer = load_tokenizer(settings.checkpoint, world.device, settings.weights, settings.precision)
    config = tokenizer.config
    size = settings.size or (0 if settings.whole else config.image_size)
    tiles(tokenizer, 1, 1, settings.tile)
    if 0 < settings.tile < config.image_size:
        say(f"warning: tiles of {settings.tile} pixels lose quality: training's pictures have {config.image_size}")
    if not settings.whole:
        tokenizer.check_size(size, size)
    factors = [factor.name for factor in config.factors]
    columns = ("original", "reconstruction", *(f"{name} alone" for name in tokenizer.separate))
    _check_memory(tokenizer, (1, 3, size, size), settings.tile)
    source = open_several(settings.images, SourceOptions.of(settings), size)
    paths = [settings.out / f"{stem}.png" for stem in source.stems()]
    _check_free(settings.out, paths)
    say(f"columns: {', '.join(columns)}")
    source.reserve(1)
    keys = ([index] for index in range(len(source)))
    workers = settings.workers if len(source) > settings.batch else 0  # few pictures are read before these start
    batches = load(PictureSet(source, size, settings.whole).read, keys, workers, pin_memory=False)
    omissions = Omissions(source.name, len(source), settings.max_unreadable, settings.out / LEFT_OUT)
    found: dict[Path, float] = {}
    left_out: list[str] = []

    def readable() -> Iterator[tuple[Path, Tensor, tuple[int, ...]]]:
        for index, (path, (picture, own, (problem,))) in enumerate(zip(paths, batches, strict=True)):
            if not problem and settings.fit == "crop" and min(picture.shape[2:]) < config.downsampling:
                sides = f"{picture.shape[3]}x{picture.shape[2]} pixels, below the downsampling factor"
                problem = f"{source.describe(index)} has {sides} {config.downsampling}: --fit pad takes it"
            if not problem:
                yield path, picture, tuple(own[0].tolist())
                continue
            left_out.append(problem)
            if len(source) > 1:
                omissions.add(problem, say)

    with closing(batches), torch.inference_mode():
        for group in _groups(readable(), settings.batch * config.image_size**2):
            pictures = torch.cat([picture for _, picture, _ in group])
            fitted = fit(pictures, config.downsampling, settings.fit)
            shown = pictures if settings.fit == "pad" else fitted
            _check_memory(tokenizer, fitted.shape, settings.tile)
            codes = encode_tiled(tokenizer, fitted, settings.tile)
            canvases, decibels = _draw(tokenizer, codes, shown, settings.tile)
            for i, (path, _, own) in enumerate(group):
                arrays = {_array(tokenizer): codes[i].cpu().numpy(), "factors": np.array(factors)}
                sizes = {"size": shown.shape[2:], "own_size": own, "tile": settings.tile}
                _write(path, canvases[i], arrays | sizes)
                found[path] = decibels[i]
                done = _describe(own, pictures, fitted, tokenizer, settings) if settings.whole else ""
                say(f"{path}  PSNR {decibels[i]:.2f} dB{done}")
    if not found:
        raise UserError(left_out[0] if len(source) == 1 else f"no picture could be read; the first: {left_out[0]}")
    if left_out:
        write_text(settings.out / LEFT_OUT, json.dumps({"left_out": left_out}, indent=1))
        say(f"{len(found):,} pictures, {len(left_out):,} left out ({settings.out / LEFT_OUT})")
    else:
        (settings.out / LEFT_OUT).unlink(missing_ok=True)  # of an earlier call
    return Reconstructed(settings.out, columns, found, tuple(left_out))


def _groups(pictures: Iterable[Any], pixels: int) -> Iterator[list[Any]]:
    """Successive (_, picture (1, 3, H, W), _) of one size, together no more than that many pixels, but for one."""
    group: list[Any] = []
    for each in pictures:
        shape = each[1].shape
        if group and shape != group[0][1].shape:
            yield group
            group = []
        group.append(each)
        if (len(group) + 1) * shape[2:].numel() > pixels:
            yield group
            group = []
    if group:
        yield group


def _array(tokenizer: Tokenizer) -> str:
    """What an .npz calls what pictures are encoded to."""
    return "codes" if tokenizer.codebook_sizes else "latents"


def _draw(tokenizer: Tokenizer, codes: Tensor, images: Tensor, tile: int) -> tuple[list[Tensor], list[float]]:
    """Of uint8 images (b, 3, H, W): originals, reconstructions and each factor alone beside each other, b times uint8
    (3, H', W'); and the PSNR of each reconstruction."""
    b, _, height, width = images.shape
    kept = [None, *range(len(tokenizer.separate))]
    step = width + _BORDER
    canvas = torch.full((b, 3, height + 2 * _BORDER, (len(kept) + 1) * step + _BORDER), 255, dtype=torch.uint8)
    canvas[:, :, _BORDER:-_BORDER, _BORDER:step] = images
    meters = [PSNR() for _ in range(b)]
    for column, keep in enumerate(kept, 1):
        top, left = 0, column * step + _BORDER
        for strip in decode_strips(tokenizer, codes, tile, keep=keep):
            pixels = to_uint8(strip[:, :, : height - top, :width]).cpu()
            rows = pixels.shape[2]
            canvas[:, :, _BORDER + top : _BORDER + top + rows, left : left + width] = pixels
            if keep is None:
                for i, meter in enumerate(meters):
                    meter.update(images[i : i + 1, :, top : top + rows], pixels[i : i + 1])
            top += rows
    return list(canvas), [meter.compute()["psnr_pooled"] for meter in meters]


def _write(path: Path, picture: Tensor, arrays: dict[str, Any]) -> None:
    make_folder(path.parent)
    # the codes take their place first: a picture without codes beside it would be somebody's own to the next call
    with replacing(path) as png, replacing(path.with_suffix(".npz")) as npz:
        with npz.open("wb") as file:
            np.savez(file, **arrays)
        with writing(path):
            to_image(picture).save(png, format="PNG")


def _describe(
    own: tuple[int, ...],
    pictures: Tensor,
    fitted: Tensor,
    tokenizer: Tokenizer,
    settings: ReconstructionSettings,
) -> str:
    """What became of pictures (b, 3, H, W) before they were encoded."""
    (height, width), sides = pictures.shape[2:], fitted.shape[2:]
    text = f"  {width}x{height}" + ("" if own == (height, width) else f" of {own[1]}x{own[0]}")
    if sides != pictures.shape[2:]:
        text += f" {'padded' if settings.fit == 'pad' else 'cropped'} to {sides[1]}x{sides[0]}"
    down, across = tiles(tokenizer, sides[0], sides[1], settings.tile)
    return text + (f", {across}x{down} tiles" if across * down > 1 else ", one piece")


def _check_memory(tokenizer: Tokenizer, shape: Iterable[int], tile: int) -> None:
    """`UserError` where pictures (b, 3, H, W), with one map of features at the size of a tile, cannot fit."""
    count, _, height, width = shape
    most = tile or max(height, width)
    features = min(height, most) * min(width, most) * (3 + tokenizer.config.map_channels) * 4
    shown = height * width * 3 * (2 + len(tokenizer.config.factors))
    what = f"{count} picture(s) of {width}x{height} pixels at a time"
    what += "" if tile else " (--tile splits large ones)"
    check_memory(count * (features + shown), what, tokenizer.device)


def _check_free(out: Path, paths: Iterable[Path]) -> None:
    """`UserError` where something of another origin would be overwritten: what this command writes has its codes."""
    check_output(out / LEFT_OUT, folder=False, mark='"left_out"')
    for path in paths:
        codes = path.with_suffix(".npz")
        if codes.exists() and not _holds_codes(codes):
            raise UserError(f"--out {out} holds a {codes.relative_to(out)} of another origin: choose another folder")
        if path.exists() and not codes.exists():
            raise UserError(f"--out {out} holds a {path.relative_to(out)} of another origin: choose another folder")


def _holds_codes(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            names = {*file.namelist()}
            return "factors.npy" in names and bool({"codes.npy", "latents.npy"} & names)
    except (OSError, zipfile.BadZipFile):
        return False
