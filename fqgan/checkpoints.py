"""From a path to a model: runs, their checkpoints, and exported folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fqgan import schema
from fqgan.config import TokenizerConfig
from fqgan.engine import checkpoint
from fqgan.errors import UserError
from fqgan.files import make_folder, write_text
from fqgan.schema import FORMAT_VERSION
from fqgan.tokenizer.model import FactorizedTokenizer

_WEIGHTS, _EMA = "tokenizer.safetensors", "ema.safetensors"


def load_tokenizer(
    path: str | Path, device: str | torch.device = "cpu", weights: str = "auto", precision: str = "float32"
) -> FactorizedTokenizer:
    """A tokenizer in eval mode.

    Args:
        path: a run folder (its newest whole checkpoint), one of its checkpoints, or an exported folder.
        weights: `auto` (the moving average where there is one), `ema` or `raw`.
        precision: `float32`, or `bf16` for speed (`FactorizedTokenizer.set_precision`).

    Raises:
        UserError: nothing there, truncated files, or files of something else.
    """
    folder = _resolve(Path(path))
    kind = weights_kind(folder, weights)
    file = folder / (_EMA if kind == "ema" else _WEIGHTS)
    config = tokenizer_config(folder)
    with torch.device("meta"):
        model = FactorizedTokenizer(config)
    model.to_empty(device=device)
    checkpoint.load_module(model, checkpoint.load_tensors(file, device), str(file))
    return model.eval().set_precision(precision)


def weights_kind(path: str | Path, weights: str = "auto") -> str:
    """Which weights `load_tokenizer` takes: `ema`, `raw`, or `exported` where an export does not tell. `UserError`
    where there are none such."""
    folder = _resolve(Path(path))
    if weights not in ("auto", "ema", "raw"):
        raise UserError(f"weights must be auto, ema or raw, got {weights!r}")
    if weights != "raw" and (folder / _EMA).exists():
        return "ema"
    if weights == "ema":
        raise UserError(f"{folder} has no moving average: it was exported, or trained with train.ema_decay 0")
    return "raw" if (folder / "state.json").exists() else "exported"


def save_tokenizer(tokenizer: FactorizedTokenizer, folder: str | Path) -> Path:
    """Export a tokenizer: `config.json` and `tokenizer.safetensors`, all that `load_tokenizer` needs."""
    folder = Path(folder)
    make_folder(folder)
    checkpoint.save_tensors(tokenizer.state_dict(), folder / _WEIGHTS)
    content = schema.to_dict(tokenizer.config)
    del content["format_version"]
    write_text(
        folder / "config.json", json.dumps({"format_version": FORMAT_VERSION, "model": content}, indent=2) + "\n"
    )
    return folder


def tokenizer_config(folder: Path) -> TokenizerConfig:
    """The architecture in a folder's config.json."""
    content = schema.load_json(folder / "config.json")
    if not isinstance(content.get("model"), dict) or "format_version" not in content:
        raise UserError(f"{folder / 'config.json'} is no tokenizer's config: it needs format_version and model")
    model = {"format_version": content["format_version"], **content["model"]}
    return schema.from_dict(TokenizerConfig, model, str(folder / "config.json"))


def _resolve(path: Path) -> Path:
    """The folder that holds the weights."""
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if path.is_file():
        raise UserError(f"{path} is a file: name a run folder, a checkpoint folder or an exported folder")
    if (path / "checkpoints").is_dir():
        newest = checkpoint.latest(path / "checkpoints")
        if newest is None:
            raise UserError(f"run {path} has no checkpoint yet")
        return newest
    if (path / "state.json").exists() and (problem := checkpoint.problem_of(path)):
        raise UserError(f"checkpoint {path}: {problem}")
    if not (path / _WEIGHTS).exists():
        raise UserError(f"{path} is no run, checkpoint or exported tokenizer: it has no {_WEIGHTS}")
    return path
