"""What `convert` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output


@dataclass(frozen=True)
class ConversionSettings:
    """A model from one form on disk to another."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A released file of FQGAN, LlamaGen or FAR, a run folder, a checkpoint, an export, or hf:org/name[@revision]."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write, or with --to released the file to write. It must not exist yet."""
    to: Literal["folder", "released"] = "folder"
    """folder: config.json, model.safetensors and a model card. released: a .pt file of the released layout."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Weights to convert: the moving average (ema) or the raw weights. auto: the moving average if there is one. If a
    released file holds both, auto writes the moving average and keeps the raw weights in the same folder."""
    tokenizer: str = ""
    """Tokenizer that the converted generator carries, if it has none or if another copy of its own is wanted."""

    def check(self) -> None:
        """Raise `UserError` where something is in the way of what is to be written."""
        check_output(self.out, folder=self.to == "folder", option="DST", inputs=[self.source])
        if self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise UserError(f"DST {self.out} exists: choose another name")
