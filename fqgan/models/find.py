"""From a path to what is there: a run, a checkpoint, an exported folder, a released file, a model on the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fqgan.base import schema
from fqgan.base.errors import UserError, brief
from fqgan.base.inputs import as_path
from fqgan.config import ForeignConfig, GeneratorConfig, TokenizerConfig
from fqgan.engine import checkpoint
from fqgan.models import hub
from fqgan.models.released import files, layouts

Kind = Literal["tokenizer", "generator"]
KINDS: tuple[Kind, ...] = ("tokenizer", "generator")
CONFIGS: Mapping[Kind, type[TokenizerConfig] | type[GeneratorConfig]] = {
    "tokenizer": TokenizerConfig,
    "generator": GeneratorConfig,
}
CARRIED = "tokenizer"
"""The sub-folder of a generator, its run or a token store that holds its tokenizer."""
MODEL, RAW, EMA, DISCRIMINATOR = (
    "model.safetensors",
    "raw.safetensors",
    "ema.safetensors",
    "discriminator.safetensors",
)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """Weights on disk."""

    file: Path
    read: Callable[[Tensors, torch.device | str], Tensors]
    """Their tensors for a model with given ones (names and shapes), on a device."""


@dataclass
class Source:
    """A model on disk, not loaded yet."""

    path: Path
    """Its folder or file."""
    kind: Kind
    config: Any
    weights: dict[str, Weights]
    """`ema`, `raw`, or `exported` where an export does not tell."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What it says beside its architecture: `label_names` and `tokenizer`, a fingerprint, of a generator, with
    `tokenizer_address` where that is a tokenizer of others; `origin`."""
    scores: dict[str, Any] = field(default_factory=dict)
    """eval.json."""
    carried: Path | None = None
    """The tokenizer that comes with a generator."""
    discriminator: Callable[[], dict[str, Tensor]] | None = None
    trained: bool = False
    """Whether it is a checkpoint of a run."""

    @property
    def provenance(self) -> dict[str, Any]:
        """`origin` and `steps`, where they are known."""
        known = {"origin": self.facts.get("origin"), "steps": self.facts.get("steps", self.facts.get("step"))}
        return {name: value for name, value in known.items() if value}

    def choose(self, weights: str = "auto") -> str:
        """Which weights `auto` (the moving average where there is one), `ema` or `raw` stands for; `UserError` where
        there are none such."""
        if weights not in ("auto", "ema", "raw"):
            raise UserError(f"weights must be auto, ema or raw, got {weights!r}")
        if weights == "ema" and "ema" not in self.weights:
            raise UserError(f"{self.path} has no moving average: it was exported, or trained with train.ema_decay 0")
        if weights in self.weights:
            return weights
        if weights == "raw" and "exported" not in self.weights:
            raise UserError(f"{self.path} has the moving average only, not the raw weights")
        return next(name for name in ("ema", "raw", "exported") if name in self.weights)


def find(path: str | Path, kind: Kind | None = None) -> Source:
    """What is at a path or address on the hub. `UserError`: nothing, or nothing whole, or another `kind` of model."""
    if str(as_path(path)).startswith(hub.FOREIGN):
        raise UserError(
            f"{path} is a tokenizer by address: reconstruct, extract, evaluate tokenizer and study tokenizers take it; "
            "what is asked for here is a model of this package"
        )
    local = hub.local(as_path(path))
    try:
        if not local.exists():
            raise UserError(f"checkpoint {path} does not exist")
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    if local.is_file() and local.name == MODEL and (local.parent / "config.json").exists():
        local = local.parent
    source = _file(local) if local.is_file() else _folder(local, kind)
    if kind and source.kind != kind:
        raise UserError(f"{source.path} holds a {source.kind}, no {kind}")
    return source


def model_config(folder: Path, kind: Kind) -> Any:
    """The architecture in a folder's config.json, or what is known of a tokenizer of others that left it."""
    content = schema.load_json(folder / "config.json")
    cls = ForeignConfig if kind == "tokenizer" and "address" in content else CONFIGS[kind]
    if not isinstance(content.get("model"), dict) or "format_version" not in content:
        raise UserError(f"{folder / 'config.json'} is no {kind}'s config: it needs format_version and model")
    model = {"format_version": content["format_version"], **content["model"]}
    config = schema.from_dict(cls, model, str(folder / "config.json"))
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    return config


def _folder(path: Path, wanted: Kind | None) -> Source:
    if wanted == "tokenizer" and (carried := _carried(path)):
        path = carried
    path = checkpoint.newest(path)
    trained = (path / "state.json").exists()
    if trained and (problem := checkpoint.problem_of(path)):
        raise UserError(f"checkpoint {path}: {problem}")
    kind, file = _kind(path, wanted)
    weights = {"raw" if trained else "exported": _weights(path / file)}
    for name, other in (("ema", EMA), ("raw", RAW)):
        if (path / other).exists():
            weights[name] = _weights(path / other)
    if "raw" in weights and "exported" in weights:  # an export has both only where one is the average of the other
        weights["ema"] = weights.pop("exported")
    discriminator = path / DISCRIMINATOR
    return Source(
        path,
        kind,
        model_config(path, kind),
        weights,
        # a checkpoint's config.json is that of a run
        facts=_facts(path / ("state.json" if trained else "config.json")),
        scores=_scores(hub.run_of(path) / "eval.json"),
        carried=_carried(path) if kind == "generator" else None,
        discriminator=(lambda: checkpoint.load_tensors(discriminator)) if discriminator.exists() else None,
        trained=trained,
    )


def _facts(file: Path) -> dict[str, Any]:
    """What a model's file says of it beside its architecture."""
    content = schema.load_json(file)
    names = schema.entry(content, "label_names", list, file, default=[])
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: label_names must be a list of words, got {brief(names)}")
    for name in ("tokenizer", "tokenizer_address"):
        schema.entry(content, name, str, file, default="")
    return {name: value for name, value in content.items() if value is not None}


def _scores(file: Path) -> dict[str, Any]:
    """What was measured, if anything: nothing of it is needed."""
    if not file.exists():
        return {}
    try:
        content = schema.load_json(file)
        for name in ("metrics", "protocol"):
            schema.entry(content, name, dict, file, default={})
        features = schema.entry(content.get("protocol", content), "features", dict, file, default={"network": ""})
        schema.entry(features, "network", str, file)
    except UserError:
        return {}
    return content


def _file(path: Path) -> Source:
    """A released file."""
    content = files.read(path)
    first = next(iter(content.weights.values()))
    config = layouts.recognise(first, content.args, str(path))

    def weights(tensors: dict[str, Tensor]) -> Weights:
        return Weights(path, lambda own, device: _placed(layouts.to_ours(tensors, config, own, str(path)), device))

    return Source(
        path,
        "tokenizer" if isinstance(config, TokenizerConfig) else "generator",
        config,
        {name: weights(tensors) for name, tensors in content.weights.items()},
        facts={
            "origin": f"a file of the released layout, {path.name}",
            "steps": content.steps,
            "grid_known": layouts.tells_grid(content.args),
        },
        discriminator=(lambda: content.discriminator) if content.discriminator else None,
    )


def _weights(file: Path) -> Weights:
    return Weights(file, lambda own, device: _placed(checkpoint.load_tensors(file, device), device))


def _placed(tensors: Tensors, device: torch.device | str) -> dict[str, Tensor]:
    """On a device and, but for whole numbers, in torch's default type: float32."""
    return {
        name: tensor.to(device, torch.get_default_dtype() if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def _kind(path: Path, wanted: Kind | None) -> tuple[Kind, str]:
    """What kind of model a folder holds, and in which file: its own name in a checkpoint and in an older export."""
    for kind in KINDS:
        if (path / f"{kind}.safetensors").exists():
            return kind, f"{kind}.safetensors"
    if not (path / MODEL).exists():
        for home in (path, path / CARRIED):
            known = schema.load_json(home / "config.json") if (home / "config.json").is_file() else {}
            if address := known.get("address"):
                raise UserError(f"{path} was made with {address}, a tokenizer by address, and does not hold it")
        raise UserError(f"{path} is no run, checkpoint or exported {wanted or 'model'}: it has no {MODEL}")
    kind = schema.load_json(path / "config.json").get("kind")
    if kind not in KINDS:
        raise UserError(f"{path / 'config.json'} is no config of fqgan: its kind must be {' or '.join(KINDS)}")
    return kind, MODEL


def _carried(folder: Path) -> Path | None:
    """The folder of the tokenizer that a run, a checkpoint, an export or a token store carries."""
    for home in (folder, folder.parent.parent):  # a run keeps one for all its checkpoints
        if any((home / CARRIED / name).exists() for name in (MODEL, "tokenizer.safetensors")):
            return home / CARRIED
        if folder.parent.name != "checkpoints":
            break
    return None
