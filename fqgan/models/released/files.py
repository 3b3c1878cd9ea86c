"""Released files on disk: read without running anything in them, and written."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.files import replacing
from fqgan.engine.checkpoint import load_tensors
from fqgan.models.pickles import load_pickle

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DDP put in front of names."""
RAW_ENTRIES = ("model", "state_dict", "module")
"""What files call their weights: of FQGAN, LlamaGen and FAR; of Lightning; of DeepSpeed."""
_FIRST_STAGE = "first_stage_model."
"""In front of an autoencoder's names, in files of whole latent-diffusion models and of taming's transformers."""
_NOT_OF_IT = ("loss.", "colorize", "model_ema.")
"""How the names begin that stand beside an autoencoder's in Lightning's files: LPIPS, discriminator, averages."""


@dataclass
class ReleasedFile:
    """What a file holds."""

    weights: dict[str, dict[str, Tensor]]
    """`raw`, and `ema` where there is one: tensors by released name."""
    discriminator: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    args: dict[str, Any] = field(default_factory=dict)
    """The training arguments."""
    raw_entry: str = RAW_ENTRIES[0]
    """One of `RAW_ENTRIES`."""


def read(path: Path) -> ReleasedFile:
    """The contents of a file of torch.save, or of safetensors with the released names; memory-mapped on a CPU.

    Pickles are read by torch's safe loader, which runs nothing; `argparse.Namespace` is the one class it takes beside
    tensors and plain data. Others, such as Lightning's callbacks, are passed by (`load_pickle`). `UserError` for
    truncated or foreign files, and for what torch's loader blocks.
    """
    if path.suffix == ".safetensors":
        return ReleasedFile({"raw": _clean(load_tensors(path), str(path))})
    content = load_pickle(path, argparse.Namespace, pass_by=True)
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        content = {"model": content}
    raw_entry = next((name for name in RAW_ENTRIES if isinstance(content, dict) and name in content), "")
    if not raw_entry and not (isinstance(content, dict) and "ema" in content):
        raise UserError(f"{path} has neither `model`, `ema` nor `state_dict`: {_described(content)}")
    entries = {"raw": content.get(raw_entry), "ema": content.get("ema")}
    weights = {kind: _clean(entry, str(path)) for kind, entry in entries.items() if entry}
    if not weights:
        raise UserError(f"{path}: `{raw_entry or 'ema'}` is empty")
    discriminator, args = content.get("discriminator"), content.get("args")
    steps = content.get("steps", content.get("global_step"))
    return ReleasedFile(
        weights,
        _clean(discriminator, str(path)) if discriminator else {},
        steps if isinstance(steps, int) else 0,
        vars(args) if isinstance(args, argparse.Namespace) else {},
        raw_entry or RAW_ENTRIES[0],
    )


def write(file: ReleasedFile, path: Path) -> None:
    """Write a file that the released code and `read` take, whole or not at all. Views are saved as what they show."""
    content: dict[str, Any] = {
        name: {key: _own(tensor) for key, tensor in tensors.items()}
        for name, tensors in (
            (file.raw_entry, file.weights.get("raw") or file.weights["ema"]),
            ("ema", file.weights.get("ema") if "raw" in file.weights else None),
            ("discriminator", file.discriminator),
        )
        if tensors
    }
    content |= {"steps": file.steps, "args": argparse.Namespace(**file.args)}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _own(tensor: Tensor) -> Tensor:
    """A tensor that shares its storage with no other: torch.save writes whole storages."""
    tensor = tensor.detach().cpu()
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def _clean(tensors: Any, where: str) -> dict[str, Tensor]:
    """Tensors without their wrappers' prefixes, and of an autoencoder nothing but its own. `UserError` for anything
    else than plain tensors in a dictionary."""
    if not isinstance(tensors, dict):
        raise UserError(f"{where}: a dictionary of tensors is {_described(tensors)}")
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{where}: {key!r} is no tensor, but {_described(tensor)}")
        if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{where}: tensor {key} of shape {tuple(tensor.shape)} has fewer numbers behind it")
        name = str(key)
        while found := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), ""):
            name = name.removeprefix(found)
        if name in result:
            raise UserError(f"{where} has the tensor {name} twice, with and without a prefix")
        result[name] = tensor
    if any(name.startswith(_FIRST_STAGE) for name in result):
        first = {name: tensor for name, tensor in result.items() if name.startswith(_FIRST_STAGE)}
        result = {name.removeprefix(_FIRST_STAGE): tensor for name, tensor in first.items()}
    return {name: tensor for name, tensor in result.items() if not name.startswith(_NOT_OF_IT)}


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"it has {', '.join(str(key) for key in list(content)[:3]) or 'nothing'}"
    return f"a {type(content).__name__}"
