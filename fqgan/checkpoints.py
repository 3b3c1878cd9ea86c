"""From a path to a model and back: the public face of `fqgan.sources` and `fqgan.pretrained`."""

from __future__ import annotations

from pathlib import Path

import torch

from fqgan.config import GeneratorConfig, TokenizerConfig
from fqgan.face import as_kind
from fqgan.generator.model import FAR
from fqgan.sources import Kind, find, model_config
from fqgan.tokenizer.model import FactorizedTokenizer, load_matching_tokenizer

__all__ = [
    "fingerprint_of",
    "generator_config",
    "load_generator",
    "load_matching_tokenizer",
    "load_tokenizer",
    "save_generator",
    "save_tokenizer",
    "tokenizer_config",
    "weights_kind",
]


def load_tokenizer(
    path: str | Path, device: str | torch.device = "cpu", weights: str = "auto", precision: str = "float32"
) -> FactorizedTokenizer:
    """A tokenizer in eval mode.

    Args:
        path: a run folder (its newest whole checkpoint), one of its checkpoints, an exported folder, a released file of
            FQGAN or LlamaGen, `hf:org/name[@revision]` or `hf:org/name/file.pt[@revision]`. Of a generator or a token
            store: the tokenizer that it carries.
        weights: `auto` (the moving average where there is one), `ema` or `raw`.
        device: `cpu`, `cuda`, `cuda:1`, ..., or `auto`: CUDA where there is one.
        precision: `float32`, or `bf16` for speed (`FactorizedTokenizer.set_precision`).

    On a CPU weights are mapped into memory: they are read when they are used, and pages that several processes read are
    there once.

    Raises:
        UserError: nothing there, truncated files, or files of something else; no such device, weights or precision.
    """
    return FactorizedTokenizer.from_pretrained(path, device, weights, precision)


def load_generator(
    path: str | Path,
    device: str | torch.device = "cpu",
    weights: str = "auto",
    precision: str = "float32",
    tokenizer: str | Path | None = None,
    with_tokenizer: bool = True,
) -> FAR:
    """A generator in eval mode, with its tokenizer and the names of its classes.

    Args:
        path: a run folder (its newest whole checkpoint), one of its checkpoints, an exported folder, a released file of
            FAR, `hf:org/name[@revision]` or `hf:org/name/file.pt[@revision]`.
        weights: `auto` (the moving average where there is one), `ema` or `raw`.
        device: as of `load_tokenizer`, for both models.
        precision: `float32`, or `bf16` for speed: that of sampling, and of its tokenizer.
        tokenizer: another place to take the tokenizer from; None: the one that the generator carries, if it does.
        with_tokenizer: False leaves it out.

    Raises:
        UserError: nothing there, truncated files, files of something else, or a tokenizer of other codes; no such
            device, weights or precision.
    """
    options = {"tokenizer": tokenizer, "with_tokenizer": with_tokenizer}
    return FAR.from_pretrained(path, device, weights, precision, **options)


def save_tokenizer(tokenizer: FactorizedTokenizer, folder: str | Path) -> Path:
    """Export a tokenizer: `config.json` and `model.safetensors`, all that `load_tokenizer` needs. `UserError` where
    it cannot be written."""
    as_kind(tokenizer, FactorizedTokenizer, "tokenizer")
    return tokenizer.export(folder)


def save_generator(generator: FAR, folder: str | Path) -> Path:
    """Export a generator: `config.json`, `model.safetensors` and, if it carries one, `tokenizer/`: all that
    `load_generator` needs. `UserError` where it cannot be written."""
    as_kind(generator, FAR, "generator")
    return generator.export(folder)


def fingerprint_of(path: str | Path) -> str:
    """Fingerprint of the tokenizer whose codes a generator was trained on; empty where its files don't tell."""
    return find(path, "generator").facts.get("tokenizer", "")


def tokenizer_config(folder: Path) -> TokenizerConfig:
    """The architecture in a folder's config.json."""
    return model_config(folder, "tokenizer")


def generator_config(folder: Path) -> GeneratorConfig:
    """The architecture in a folder's config.json."""
    return model_config(folder, "generator")


def weights_kind(path: str | Path, weights: str = "auto", kind: Kind = "tokenizer") -> str:
    """Which weights `load_tokenizer` (or `load_generator`) takes: `ema`, `raw`, or `exported` where an export does not
    tell. `UserError` where there are none such."""
    return find(path, kind).choose(weights)
