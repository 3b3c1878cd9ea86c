"""From a path or an address to a tokenizer, and back to a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from fqgan.base.errors import UserError
from fqgan.base.inputs import as_kind, as_path
from fqgan.base.printing import say
from fqgan.engine.devices import pick_device
from fqgan.models.hub import SPLIT
from fqgan.tokenizer.foreign import ForeignTokenizer, is_foreign
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.split import SplitTokenizer, split_address


def load_matching_tokenizer(
    path: str | Path,
    fingerprint: str,
    owner: str,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    weights: str = "auto",
) -> FactorizedTokenizer | ForeignTokenizer:
    """The tokenizer at `path`, as in `load_tokenizer`, which must be the one of this fingerprint or have another
    decoder of its codes; `UserError` names it and `owner` otherwise. Without a fingerprint a warning says that nothing
    was compared."""
    tokenizer = load_tokenizer(path, device, weights, precision)
    if not fingerprint:
        say(f"fqgan: warning: {owner} does not say which tokenizer it belongs to; taking {path}", error=True)
    elif fingerprint not in (getattr(tokenizer.config, "codes_of", ""), tokenizer.fingerprint()):
        raise UserError(f"the tokenizer {path} is not the one that {owner} was made with: its codes mean other things")
    return tokenizer


def load_tokenizer(
    path: str | Path, device: str | torch.device = "cpu", weights: str = "auto", precision: str = "float32"
) -> FactorizedTokenizer | ForeignTokenizer:
    """A tokenizer in eval mode.

    Args:
        path: a run folder (its newest whole checkpoint), one of its checkpoints, an exported folder, a released file of
            FQGAN, LlamaGen, VQGAN or latent diffusion, `hf:org/name[@revision]` or
            `hf:org/name/file.pt[@revision]`. Of a generator or a token store: the tokenizer that it carries. Also a
            tokenizer of others, which pictures pass through, without features of factors (`ForeignTokenizer`):
            `diffusers:folder-or-id`, `py:module:function` or `py:file.py:function` (an object with `encode` and
            `decode`, whose code is run). `split:SIZE:PATH` is the tokenizer of any of these with large codes as several
            sub-codes (`SplitTokenizer`).
        weights: `auto` (the moving average where there is one), `ema` or `raw`.
        device: `cpu`, `cuda`, `cuda:1`, ..., `mps`, or `auto` (`fqgan.engine.devices.pick_device`).
        precision: `float32`, or `bf16` for speed (`FactorizedTokenizer.set_precision`).

    On a CPU weights are mapped into memory: they are read when they are used, and pages that several processes read are
    there once.

    Raises:
        UserError: nothing there, truncated files, or files of something else; no such device, weights or precision.
    """
    if not is_foreign(as_path(path)):
        return FactorizedTokenizer.from_pretrained(path, device, weights, precision)
    if str(path).startswith(SPLIT):
        size, inner = split_address(str(path))
        return SplitTokenizer(str(path), load_tokenizer(inner, device, weights, precision), size)
    if weights != "auto":
        raise UserError(f"{path} has one set of weights, which is auto: there are no {weights} weights")
    return ForeignTokenizer(str(path), pick_device(device), precision)


def save_tokenizer(tokenizer: FactorizedTokenizer, folder: str | Path) -> Path:
    """Export a tokenizer: `config.json` and `model.safetensors`, all that `load_tokenizer` needs. `UserError` where
    it cannot be written."""
    as_kind(tokenizer, FactorizedTokenizer, "tokenizer")
    return tokenizer.export(folder)
