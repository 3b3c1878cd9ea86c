"""Features and statistics of a set on disk: as a file of our own, which says how they were made, or as ADM's."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fqgan.data.sources.npz import keys, read_array
from fqgan.errors import UserError
from fqgan.evaluation.collect import FeatureSet
from fqgan.files import UnwritableError, make_folder, replacing
from fqgan.metrics.frechet import Gaussian
from fqgan.printing import say
from fqgan.schema import FORMAT_VERSION

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
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            content = json.loads((file.metadata() or {})["fqgan"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            gaussians = {
                name: Gaussian(tensors[f"{name}.mean"], tensors[f"{name}.covariance"], count)
                for name, count in content["counts"].items()
            }
            features = FeatureSet(**gaussians, features=tensors.get("features"), score=content["score"])
            protocol = content["protocol"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged or holds no statistics of fqgan evaluate ({error!r})") from None
    if content["format_version"] != FORMAT_VERSION:
        raise UserError(f"{path}: format_version {content['format_version']} is of another version of fqgan")
    return features, protocol


def load_adm(path: Path, device: torch.device | str = "cpu") -> FeatureSet:
    """`mu` and `sigma` of ADM's .npz, and `mu_s` and `sigma_s`, the spatial features', where it has them. It does not
    tell how many images they are of. `UserError` for numbers that are no Gaussian's."""
    pooled = _adm(path, "mu", "sigma", device)
    spatial = _adm(path, "mu_s", "sigma_s", device) if {"mu_s", "sigma_s"} <= keys(path) else None
    return FeatureSet(pooled, spatial)


def _adm(path: Path, mean: str, covariance: str, device: torch.device | str) -> Gaussian:
    mu, sigma = (torch.from_numpy(read_array(path, key)).double().to(device) for key in (mean, covariance))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{path}: {mean} and {covariance} must be (d,) and (d, d), got {tuple(mu.shape)} and {tuple(sigma.shape)}"
        )
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise UserError(f"{path}: {mean} or {covariance} holds NaN or infinity")
    return Gaussian(mu, sigma, 0)


def cache_path(protocol: dict[str, Any]) -> Path:
    """Where the statistics of a protocol, which holds the content's hash, are kept: under `$FQGAN_CACHE`, else
    ~/.cache/fqgan, in `statistics`."""
    root = Path(os.environ.get("FQGAN_CACHE") or "~/.cache/fqgan").expanduser()
    key = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    return root / "statistics" / f"{key[:32]}.safetensors"


def cached(path: Path, device: torch.device | str) -> tuple[FeatureSet, dict[str, Any]] | None:
    """What is kept there; None where nothing is, or it is damaged."""
    try:
        return load_statistics(path, device)
    except UserError:
        return None


def keep(features: FeatureSet, protocol: dict[str, Any], path: Path) -> None:
    """Put statistics into the cache. One that cannot be written costs time only."""
    try:
        make_folder(path.parent)
        save_statistics(features, protocol, path)
    except UnwritableError as error:
        say(f"warning: the statistics are not kept: {error}")
