"""Features and statistics of a set on disk: as a file of our own, which says how they were made, or as ADM's."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError, check_file, make_folder, reading, replacing
from fqgan.base.printing import say
from fqgan.base.schema import FORMAT_VERSION, entry, parse_json
from fqgan.data.sources.npz import keys, read_array
from fqgan.engine.devices import exact_device
from fqgan.evaluation.collect import FeatureSet
from fqgan.metrics.frechet import Gaussian

_GAUSSIANS = ("pooled", "spatial", "half")


def save_statistics(features: FeatureSet, protocol: dict[str, Any], path: Path) -> None:
    """Write a set's features and statistics as safetensors, with the protocol that they were made under."""
    tensors: dict[str, Tensor] = {}
    counts = {}
    for name in _GAUSSIANS:
        gaussian: Gaussian | None = getattr(features, name)
        if gaussian is not None:
            tensors |= {f"{name}.mean": gaussian.mean, f"{name}.covariance": gaussian.covariance}
            counts[name] = gaussian.count
    if features.features is not None:
        tensors["features"] = features.features
    content = {
        "format_version": FORMAT_VERSION,
        "counts": counts,
        "score": features.score,
        "protocol": protocol,
    }
    with replacing(path) as temporary:
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, {"fqgan": json.dumps(content)})


def load_statistics(path: Path, device: torch.device | str = "cpu") -> tuple[FeatureSet, dict[str, Any]]:
    """What `save_statistics` wrote. `UserError` for missing, damaged and foreign files."""
    check_file(path)
    with reading(path, "statistics of fqgan evaluate"), safe_open(path, "pt") as file:
        metadata = (file.metadata() or {}).get("fqgan")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata is None:
        raise UserError(f"{path} holds no statistics of fqgan evaluate")
    content = parse_json(metadata, path)
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is of another version of fqgan: its format_version is not {FORMAT_VERSION}")
    entry(content, "counts", dict, path, _are_counts, "of pooled, spatial and half, each at least 2")
    protocol = entry(content, "protocol", dict, path)
    entry(protocol, "size", int, path, lambda size: 0 <= size < 2**31, "of pixels", default=0)
    side = entry(protocol, "set", dict, path, default={})
    entry(side, "count", int, path, lambda count: 0 <= count < 2**63, default=0)
    if (score := content.get("score")) is not None:
        for name in ("score", "score_std"):
            entry(entry(content, "score", dict, path), name, float, path)
    gaussians: dict[str, Gaussian] = {}
    for name, count in content["counts"].items():
        mean, covariance = (_tensor(tensors, f"{name}.{part}", path) for part in ("mean", "covariance"))
        gaussians[name] = _gaussian(path, name, mean, covariance, count, torch.finfo(covariance.dtype).eps)
    pooled, half = gaussians["pooled"], gaussians.get("half")
    features = _tensor(tensors, "features", path).float() if "features" in tensors else None
    if features is not None and (features.shape[1:] != pooled.mean.shape or not features.isfinite().all()):
        raise UserError(f"{path}: features must be (n, {len(pooled.mean)}) and finite, got {tuple(features.shape)}")
    if half is not None and half.mean.shape != pooled.mean.shape:
        raise UserError(f"{path}: pooled and half are of {len(pooled.mean)} and {len(half.mean)} dimensions")
    exact = exact_device(device)
    placed = {
        name: Gaussian(mean.to(exact), covariance.to(exact), n) for name, (mean, covariance, n) in gaussians.items()
    }
    return FeatureSet(**placed, features=None if features is None else features.to(device), score=score), protocol


def _are_counts(counts: dict[str, Any]) -> bool:
    known = set(counts) <= set(_GAUSSIANS) and "pooled" in counts
    return known and all(type(count) is int and 2 <= count < 2**53 for count in counts.values())


def _tensor(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in tensors or not tensors[name].is_floating_point():
        raise UserError(f"{path}: {name} {'holds no real numbers' if name in tensors else 'is missing'}")
    return tensors[name]


def load_adm(path: Path, device: torch.device | str = "cpu") -> FeatureSet:
    """`mu` and `sigma` of ADM's .npz, and `mu_s` and `sigma_s`, the spatial features', where it has them. It does not
    tell how many images they are of. `UserError` for numbers that are no Gaussian's."""
    pooled = _adm(path, "mu", "sigma", device)
    spatial = _adm(path, "mu_s", "sigma_s", device) if {"mu_s", "sigma_s"} <= keys(path) else None
    return FeatureSet(pooled, spatial)


def _adm(path: Path, mean: str, covariance: str, device: torch.device | str) -> Gaussian:
    arrays = [read_array(path, key) for key in (mean, covariance)]
    for key, values in zip((mean, covariance), arrays, strict=True):
        if values.dtype.kind not in "fiu":
            raise UserError(f"{path}: {key} must hold real numbers, not {values.dtype}")
    with np.errstate(all="ignore"):  # what is beyond float64 becomes infinite, and is refused as such
        mu, sigma = (torch.from_numpy(values.astype(np.float64)) for values in arrays)
    eps = float(np.finfo(arrays[1].dtype).eps) if arrays[1].dtype.kind == "f" else 0.0
    found = _gaussian(path, f"{mean} and {covariance}", mu, sigma, 0, eps)
    exact = exact_device(device)
    return Gaussian(found.mean.to(exact), found.covariance.to(exact), 0)


def _gaussian(path: Path, name: str, mean: Tensor, covariance: Tensor, count: int, eps: float) -> Gaussian:
    """Mean and covariance in float64. `UserError` where they are none, by more than numbers of the precision `eps`, and
    those of float32, are rounded."""
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        raise UserError(f"{path}: {name} must be (d,) and (d, d), got {shapes}")
    mean, covariance = mean.double(), covariance.double()
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError(f"{path}: {name} must be finite: NaN or infinity is among them")
    slack = max(1e-4, len(mean) * eps) * covariance.diagonal().abs().max().item()
    if (covariance - covariance.T).abs().max() > slack:
        raise UserError(f"{path}: {name} are no mean and covariance: not symmetric")
    # the least eigenvalue is above -slack just where this has a root
    lifted = covariance + (slack + torch.finfo(torch.float64).tiny) * torch.eye(len(mean), dtype=torch.float64)
    if torch.linalg.cholesky_ex(lifted).info:
        raise UserError(f"{path}: {name} are no mean and covariance: not positive semi-definite")
    return Gaussian(mean, covariance, count)


def cache_path(protocol: dict[str, Any]) -> Path:
    """Where the statistics of a protocol, which holds the content's hash, are kept: under `$FQGAN_CACHE`, else
    ~/.cache/fqgan, in `statistics`."""
    root = Path(os.environ.get("FQGAN_CACHE") or "~/.cache/fqgan").expanduser()
    key = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    return root / "statistics" / f"{key[:32]}.safetensors"


def cached(
    path: Path, made: dict[str, Any], content: dict[str, Any], dim: int, device: torch.device | str
) -> tuple[FeatureSet, dict[str, Any]] | None:
    """The features that are kept there and what the protocol says of their set; None where nothing is, or it is damaged
    or not what was `made` of this `content`, with `dim` numbers an image."""
    try:
        features, protocol = load_statistics(path, device)
    except UserError:
        return None
    side = protocol.pop("set", {})
    fits = protocol == made and content.items() <= side.items() and "count" in side
    return (features, side) if fits and len(features.pooled.mean) == dim else None


def keep(features: FeatureSet, protocol: dict[str, Any], path: Path) -> None:
    """Put statistics into the cache. One that cannot be written costs time only."""
    try:
        make_folder(path.parent)
        save_statistics(features, protocol, path)
    except UnwritableError as error:
        say(f"warning: the statistics are not kept: {error}")
