"""What users hand to the library, made into what it works on, or refused with a `UserError` of one line.

Tensors, numpy arrays and sequences of numbers are one to it: they come out as tensors of the type, and on the device,
that are needed. Looking at values makes a GPU wait: training asks for shapes and types alone.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.base.errors import UserError, brief

Numbers = Tensor | npt.ArrayLike
"""Tensors, arrays, and sequences of numbers or of these."""

_FAR_OUT = 20.0  # pixels of a decoder lie a little outside of [-1, 1]; these are in 0..255
_SEEDS = 2**64


def as_tensor(values: Numbers, name: str) -> Tensor:
    """A tensor, or one of a copy of anything that numpy understands. No numbers at all are of any type."""
    if isinstance(values, Tensor):
        tensor = values
    else:
        try:
            # a copy: torch takes neither negative strides nor another byte order, and warns of what is read-only
            array = np.array(values, order="C")
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise UserError(f"{name} must be a tensor, an array or a list of numbers, got {brief(values)}") from None
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{name} must be a plain tensor of real numbers, got {brief(values)}")
    return tensor


def as_whole(values: Numbers, name: str) -> Tensor:
    """int64 of whole numbers of any type; bool is none of them."""
    values = as_tensor(values, name)
    if values.numel() and (values.is_floating_point() or values.dtype == torch.bool):
        raise UserError(f"{name} must be whole numbers, got {brief(values)}")
    return values.to(torch.int64)


def as_images(
    images: Numbers,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    channels: int | None = 3,
    values: bool = True,
) -> Tensor:
    """(b, channels, H, W) floating point in [-1, 1], or uint8 in 0..255, which is scaled to it.

    Args:
        device, dtype: of the result; None: as they come.
        channels: None: any number.
        values: refuse pixels that are not finite, or far outside; a little outside may be a reconstruction.
    """
    images = as_tensor(images, "images")
    if images.ndim != 4 or channels not in (None, images.shape[1]):
        hint = ""
        if images.ndim == 3:
            hint = ": one image is a batch too, images[None]"
        elif images.ndim == 4 and images.shape[3] == channels:
            hint = ": channels come before height and width"
        raise UserError(f"images must be (b, {channels or 'c'}, H, W), got {tuple(images.shape)}{hint}")
    if images.dtype == torch.uint8:
        images = images.to(device).float() / 127.5 - 1
    elif images.numel() and not images.is_floating_point():
        raise UserError(f"images must be floating point in [-1, 1] or uint8 in 0..255, got {brief(images)}")
    elif values and images.numel():
        low, high = torch.stack(images.detach().aminmax()).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError("images hold pixels that are not finite (NaN or infinity)")
        if max(-low, high) > _FAR_OUT:
            raise UserError(f"images must lie in [-1, 1], got {low:g} to {high:g}: pixels in 0..255 are taken as uint8")
    return images.to(device, dtype or (images.dtype if images.is_floating_point() else torch.float32))


def as_codes(
    codes: Numbers,
    sizes: Sequence[int],
    device: torch.device | None = None,
    *,
    grid: Sequence[int] | None = None,
    values: bool = True,
) -> Tensor:
    """(b, k, h, w) int64 with factor i in [0, sizes[i]), of whole numbers of any type.

    Args:
        grid: h and w; None: any.
        values: look at the values on other devices than the CPU too.
    """
    codes = as_whole(codes, "codes")
    wanted, shape = (len(sizes), *(grid or ("h", "w"))), tuple(codes.shape)
    if len(shape) != 4 or 0 in shape[1:] or shape[1:] != (len(sizes), *(grid or shape[2:])):
        raise UserError(f"codes must be (b, {', '.join(map(str, wanted))}), got {shape}")
    if codes.numel() and (values or codes.is_cpu):
        bounds = torch.stack([codes.amin((0, 2, 3)), codes.amax((0, 2, 3))], 1).tolist()
        for i, (size, (low, high)) in enumerate(zip(sizes, bounds, strict=True)):
            if not 0 <= low <= high < size:
                raise UserError(f"codes of factor {i} must lie in [0, {size}), got {low if low < 0 else high}")
    return codes.to(device)


def as_indices(
    indices: Numbers,
    name: str,
    rule: str,
    count: int,
    device: torch.device | None = None,
    *,
    low: int = 0,
    length: int | None = None,
    values: bool = True,
) -> Tensor:
    """(n,) int64 in [low, count), of whole numbers of any type.

    Args:
        rule: says what they must do.
        length: n; None: any.
        values: look at the values on other devices than the CPU too.
    """
    indices = as_whole(indices, name)
    wrong = indices.ndim != 1
    if not wrong and indices.numel() and (values or indices.is_cpu):
        least, most = torch.stack(indices.aminmax()).tolist()
        wrong = not low <= least <= most < count
    if wrong:
        raise UserError(f"{name} must {rule}, got {brief(indices.tolist())}")
    if length not in (None, len(indices)):
        raise UserError(f"{name} must be one for each of {length}, got {len(indices)}")
    return indices.to(device)


def as_labels(labels: Numbers, null_class: int, device: torch.device | None = None, **options: Any) -> Tensor:
    """(n,) int64 in [0, null_class]; -1, which data sets have for no label, becomes the null class. `options` as in
    `as_indices`."""
    rule = f"be a list of classes from 0 to {null_class} (the null class, as is -1)"
    found = as_indices(labels, "labels", rule, null_class + 1, device, low=-1, **options)
    return found.masked_fill(found == -1, null_class)


def as_rows(rows: Numbers, name: str, dim: int | None = None, device: torch.device | None = None) -> Tensor:
    """(n, dim) real numbers, of any type; dim None: any."""
    rows = as_tensor(rows, name).detach()
    if rows.ndim != 2 or dim not in (None, rows.shape[1]):
        raise UserError(f"{name} must be (n, {dim or 'd'}), got {tuple(rows.shape)}")
    return rows.to(device)


def as_count(value: Any, name: str, low: int = 0, most: int = _SEEDS - 1) -> int:
    """A whole number from `low` to `most`, of any integer type."""
    try:
        number = low - 1 if isinstance(value, bool | np.bool_) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = low - 1
    if not low <= number <= most:
        limit = f"from {low} to 2^64 - 1" if most == _SEEDS - 1 else f"from {low} to {most}"
        raise UserError(f"{name} must be a whole number {limit}, got {brief(value)}")
    return number


def as_streams(seed: Any, first_image: Any, count: int) -> list[tuple[int, int]]:
    """Seed and index of each of `count` images' random streams, of one seed or one for each."""
    many = seed.tolist() if isinstance(seed, Tensor | np.ndarray) else seed
    if isinstance(many, Sequence) and not isinstance(many, str | bytes):
        if len(many) != count:
            raise UserError(f"one seed, or one for each of the {count} images is needed, got {len(many)}")
        return [(as_count(own, "seed"), 0) for own in many]
    one, first = as_count(many, "seed"), as_count(first_image, "first_image", most=_SEEDS - max(1, count))
    return [(one, first + i) for i in range(count)]


def as_factors(keep: Any, names: Sequence[str]) -> list[int]:
    """Factors by number or name, one or several."""
    several = keep.tolist() if isinstance(keep, Tensor | np.ndarray) else keep
    if isinstance(several, str | bytes) or not isinstance(several, Iterable):
        several = [several]
    return [_factor(each, names) for each in several]


def _factor(value: Any, names: Sequence[str]) -> int:
    if isinstance(value, str) and value in names:
        return names.index(value)
    try:
        return as_count(value, "", most=len(names) - 1)
    except UserError:
        raise UserError(
            f"keep names factor {brief(value)}, but the tokenizer has factors 0..{len(names) - 1}: {', '.join(names)}"
        ) from None


def as_path(path: Any, name: str = "path") -> str | Path:
    """A path, or an address, as it is."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise UserError(f"{name} must be a path or an address, got {brief(path)}")
    return path if isinstance(path, str | Path) else Path(text)


def as_kind(value: Any, kind: type, name: str) -> None:
    """Refuse anything but an object of a class of ours."""
    if not isinstance(value, kind):
        raise UserError(f"{name} must be a {kind.__name__}, got {brief(value)}")
