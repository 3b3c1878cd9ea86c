"""What a number depends on beside the model: recorded with it, and compared before two numbers are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, write_text
from fqgan.base.schema import FORMAT_VERSION, finite
from fqgan.config import PictureOptions
from fqgan.metrics.neighbours import K
from fqgan.nets.measuring import FeatureNetwork

CROP = "ADM centre crop: box halvings, then bicubic, of the shorter side; 8 bit"
Rows = list[tuple[str, str]]
_PACKAGES = ("fqgan", "torch", "torchvision", "numpy", "pillow", "simplejpeg", "timm", "transformers")


@dataclass(frozen=True)
class Evaluation:
    """The numbers of an evaluation, and how they came about. On other ranks than the main one it is empty."""

    content: dict[str, Any] = field(default_factory=dict)
    """What an eval.json holds: `subject`, `metrics`, `protocol`, and what else there is to say of the sets."""
    heading: str = ""
    rows: Rows = field(default_factory=list)
    """Names and values of the table."""
    warnings: list[str] = field(default_factory=list)
    """What to know before the numbers are believed."""

    @property
    def metrics(self) -> dict[str, Any]:
        """Name -> value."""
        return self.content["metrics"]

    @property
    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on beside the model."""
        return self.content["protocol"]

    def table(self) -> str:
        """Aligned text."""
        width = max(len(name) for name, _ in self.rows)
        return "\n".join([self.heading, *(f"  {name:<{width}}  {value}" for name, value in self.rows)])

    def write(self, path: str | Path, **more: Any) -> None:
        """Write an eval.json, with more entries if need be, whole or not at all. `UnwritableError` where that fails."""
        write_result({**self.content, **more, "warnings": self.warnings}, Path(path))


def features_protocol(network: FeatureNetwork, size: int, options: PictureOptions) -> dict[str, Any]:
    """What features of images depend on."""
    return {
        "features": network.describe(),
        "size": size,
        "crop": CROP,
        "small": options.small,
        "range": " ".join(options.range),
    }


def full_protocol(features: dict[str, Any], kept: int, device: str, **sets: Any) -> dict[str, Any]:
    """`features_protocol`, the sets, and what remains: neighbours, device, versions."""
    return {**features, **sets, "pairs": {"kept": kept, "neighbours": K}, "device": device, "versions": versions()}


def versions() -> dict[str, str]:
    """Of all packages that touch pixels or features, where they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_result(result: dict[str, Any], path: Path) -> None:
    """Write an eval.json, whole or not at all."""
    make_folder(path.parent)
    content = {"format_version": FORMAT_VERSION, **result}
    write_text(path, json.dumps(finite(content), indent=2) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """An eval.json, or that of a folder. `UserError` for what is none."""
    if path.is_dir():
        path = path / "eval.json"
    content = schema.load_json(path)
    for name in ("metrics", "protocol"):
        if not isinstance(content.get(name), dict):
            raise UserError(f"{path} is no result of fqgan evaluate: it has no {name}")
    schema.entry(content, "factors", dict, path, default={})
    return content


def differences(a: dict[str, Any], b: dict[str, Any], allowed: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (in a, in b) of all in which two results' protocols differ, but for what lies under the `allowed`
    names. The kind of the result counts as protocol."""
    left, right = ({"subject": each.get("subject"), **each["protocol"]} for each in (a, b))
    for name in allowed:
        if not any(f"{key}.".startswith(f"{name}.") for key in {**schema.flatten(left), **schema.flatten(right)}):
            raise UserError(
                f"--allow {name}: the protocols have no such entry; they have {', '.join({**left, **right})}"
            )
    found = schema.diff(left, right)
    return {key: pair for key, pair in found.items() if not any(f"{key}.".startswith(f"{n}.") for n in allowed)}
