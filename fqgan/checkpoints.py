"""From a path to a model: runs, their checkpoints, and exported folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from fqgan import schema
from fqgan.config import GeneratorConfig, TokenizerConfig
from fqgan.engine import checkpoint
from fqgan.errors import UserError
from fqgan.files import make_folder, write_text
from fqgan.generator.model import FAR
from fqgan.schema import FORMAT_VERSION
from fqgan.tokenizer.model import FactorizedTokenizer

Kind = Literal["tokenizer", "generator"]
_EMA = "ema.safetensors"
_CARRIED = "tokenizer"  # the sub-folder of a generator, or of a token store, that holds its tokenizer
Module = TypeVar("Module", bound=nn.Module)
Config = TypeVar("Config", TokenizerConfig, GeneratorConfig)


def load_tokenizer(
    path: str | Path, device: str | torch.device = "cpu", weights: str = "auto", precision: str = "float32"
) -> FactorizedTokenizer:
    """A tokenizer in eval mode.

    Args:
        path: a run folder (its newest whole checkpoint), one of its checkpoints, or an exported folder. Of a generator
            or a token store: the tokenizer that it carries.
        weights: `auto` (the moving average where there is one), `ema` or `raw`.
        precision: `float32`, or `bf16` for speed (`FactorizedTokenizer.set_precision`).

    Raises:
        UserError: nothing there, truncated files, or files of something else.
    """
    folder = _resolve(Path(path), "tokenizer")
    model = _load(FactorizedTokenizer, tokenizer_config(folder), folder, "tokenizer", device, weights)
    return model.set_precision(precision)


def load_generator(
    path: str | Path,
    device: str | torch.device = "cpu",
    weights: str = "auto",
    precision: str = "float32",
    tokenizer: str | Path = "",
    with_tokenizer: bool = True,
) -> FAR:
    """A generator in eval mode, with its tokenizer and the names of its classes.

    Args:
        path: a run folder (its newest whole checkpoint), one of its checkpoints, or an exported folder.
        weights: `auto` (the moving average where there is one), `ema` or `raw`.
        precision: `float32`, or `bf16` for speed: that of sampling, and of its tokenizer.
        tokenizer: another place to take the tokenizer from; empty: the one that the generator carries, if it does.
        with_tokenizer: False leaves it out.

    Raises:
        UserError: nothing there, truncated files, files of something else, or a tokenizer of other codes.
    """
    folder = _resolve(Path(path), "generator")
    model = _load(FAR, generator_config(folder), folder, "generator", device, weights).set_precision(precision)
    facts = _facts(folder)
    model.label_names = tuple(facts.get("label_names", ()))
    source = Path(tokenizer) if str(tokenizer) else _carried(folder)
    if source and with_tokenizer:
        model.carry(load_matching_tokenizer(source, facts.get("tokenizer", ""), str(folder), device, precision))
    return model


def fingerprint_of(path: str | Path) -> str:
    """Fingerprint of the tokenizer whose codes a generator was trained on; empty where its files don't tell."""
    return _facts(_resolve(Path(path), "generator")).get("tokenizer", "")


def load_matching_tokenizer(
    path: Path,
    fingerprint: str,
    owner: str,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    weights: str = "auto",
) -> FactorizedTokenizer:
    """The tokenizer at `path`, which must be the one of this fingerprint; `UserError` names it and `owner` otherwise.
    Without a fingerprint a warning says that nothing was compared."""
    tokenizer = load_tokenizer(path, device, weights, precision)
    if not fingerprint:
        print(f"fqgan: warning: {owner} does not say which tokenizer it belongs to; taking {path}", file=sys.stderr)
    elif tokenizer.fingerprint() != fingerprint:
        raise UserError(f"the tokenizer {path} is not the one that {owner} was made with: its codes mean other things")
    return tokenizer


def save_tokenizer(tokenizer: FactorizedTokenizer, folder: str | Path) -> Path:
    """Export a tokenizer: `config.json` and `tokenizer.safetensors`, all that `load_tokenizer` needs."""
    return _save(tokenizer, tokenizer.config, Path(folder), "tokenizer", {})


def save_generator(generator: FAR, folder: str | Path) -> Path:
    """Export a generator: `config.json`, `generator.safetensors` and, if it carries one, `tokenizer/`: all that
    `load_generator` needs."""
    facts: dict[str, Any] = {"label_names": generator.label_names}
    if generator.has_tokenizer:
        facts["tokenizer"] = generator.tokenizer.fingerprint()
        save_tokenizer(generator.tokenizer, Path(folder) / _CARRIED)
    return _save(generator, generator.config, Path(folder), "generator", facts)


def tokenizer_config(folder: Path) -> TokenizerConfig:
    """The architecture in a folder's config.json."""
    return _config(TokenizerConfig, folder, "tokenizer")


def generator_config(folder: Path) -> GeneratorConfig:
    """The architecture in a folder's config.json."""
    return _config(GeneratorConfig, folder, "generator")


def weights_kind(path: str | Path, weights: str = "auto", kind: Kind = "tokenizer") -> str:
    """Which weights `load_tokenizer` (or `load_generator`) takes: `ema`, `raw`, or `exported` where an export does not
    tell. `UserError` where there are none such."""
    folder = _resolve(Path(path), kind)
    if weights not in ("auto", "ema", "raw"):
        raise UserError(f"weights must be auto, ema or raw, got {weights!r}")
    if weights != "raw" and (folder / _EMA).exists():
        return "ema"
    if weights == "ema":
        raise UserError(f"{folder} has no moving average: it was exported, or trained with train.ema_decay 0")
    return "raw" if (folder / "state.json").exists() else "exported"


def _load(
    build: type[Module], config: Any, folder: Path, kind: Kind, device: str | torch.device, weights: str
) -> Module:
    """The model of a config with the weights in a folder."""
    file = folder / (_EMA if weights_kind(folder, weights, kind) == "ema" else f"{kind}.safetensors")
    with torch.device("meta"):
        model = build(config)
    model.to_empty(device=device)
    checkpoint.load_module(model, checkpoint.load_tensors(file, device), str(file))
    return model.eval()


def _save(model: nn.Module, config: Any, folder: Path, kind: Kind, facts: dict[str, Any]) -> Path:
    make_folder(folder)
    checkpoint.save_tensors(model.state_dict(), folder / f"{kind}.safetensors")
    content = schema.to_dict(config)
    del content["format_version"]
    whole = {"format_version": FORMAT_VERSION, "model": content, **facts}
    write_text(folder / "config.json", json.dumps(whole, indent=2) + "\n")
    return folder


def _config(cls: type[Config], folder: Path, kind: Kind) -> Config:
    content = schema.load_json(folder / "config.json")
    if not isinstance(content.get("model"), dict) or "format_version" not in content:
        raise UserError(f"{folder / 'config.json'} is no {kind}'s config: it needs format_version and model")
    model = {"format_version": content["format_version"], **content["model"]}
    return schema.from_dict(cls, model, str(folder / "config.json"))


def _facts(folder: Path) -> dict[str, Any]:
    """What a generator's folder says beside its architecture: `label_names` and `tokenizer`, the fingerprint. A
    checkpoint has them in state.json, as its config.json is that of a run."""
    name = "state.json" if (folder / "state.json").exists() else "config.json"
    return schema.load_json(folder / name)


def _carried(folder: Path) -> Path | None:
    """The folder of the tokenizer that a run, a checkpoint, an export or a token store carries."""
    for home in (folder, folder.parent.parent):  # a run keeps one for all its checkpoints
        if (home / _CARRIED / "tokenizer.safetensors").exists():
            return home / _CARRIED
        if folder.parent.name != "checkpoints":
            break
    return None


def _resolve(path: Path, kind: Kind) -> Path:
    """The folder that holds the weights."""
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if path.is_file():
        raise UserError(f"{path} is a file: name a run folder, a checkpoint folder or an exported folder")
    if kind == "tokenizer" and (carried := _carried(path)):
        return carried
    if (path / "checkpoints").is_dir():
        newest = checkpoint.latest(path / "checkpoints")
        if newest is None:
            raise UserError(f"run {path} has no checkpoint yet")
        path = newest
    elif (path / "state.json").exists() and (problem := checkpoint.problem_of(path)):
        raise UserError(f"checkpoint {path}: {problem}")
    if not (path / f"{kind}.safetensors").exists():
        other = "tokenizer" if kind == "generator" else "generator"
        if (path / f"{other}.safetensors").exists():
            raise UserError(f"{path} holds a {other}, no {kind}")
        raise UserError(f"{path} is no run, checkpoint or exported {kind}: it has no {kind}.safetensors")
    return path
