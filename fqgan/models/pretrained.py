"""Models on disk and on the hub: what both kinds of model share, with the names that the ecosystem knows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, write_text
from fqgan.base.inputs import as_path
from fqgan.base.schema import FORMAT_VERSION
from fqgan.engine import checkpoint
from fqgan.engine.devices import pick_device
from fqgan.engine.sizes import num_parameters
from fqgan.models import hub
from fqgan.models.card import model_card
from fqgan.models.find import MODEL, Kind, Source, find
from fqgan.models.fingerprint import weights_fingerprint


class Pretrained(nn.Module):
    """A model that `from_pretrained`, `save_pretrained` and `push_to_hub` can move. Built from `config` alone."""

    kind: ClassVar[Kind]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.precision = "float32"
        self.chosen = "exported"
        """Which weights were loaded: `ema`, `raw`, or `exported` where they have no such name."""
        self.provenance: Mapping[str, Any] = {}
        """Where the weights are from: `origin` and `steps`, where that is known."""
        self.scores: Mapping[str, Any] = {}
        """What was measured, as eval.json has it."""

    def set_precision(self, precision: str) -> Self:
        """How it computes: `float32` or `bf16`. `UserError` for another precision."""
        if precision not in ("float32", "bf16"):
            raise UserError(f"precision must be float32 or bf16, got {precision!r}")
        self.precision = precision
        return self

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        weights: str = "auto",
        precision: str = "float32",
        **options: Any,
    ) -> Self:
        """The model at a path or address, in eval mode; `fqgan.load_tokenizer` and `fqgan.load_generator` say more."""
        device = pick_device(device)
        source = find(path, cls.kind)
        model = cls.of_source(source, weights, device).set_precision(precision)
        model._adopt(source, device=device, precision=precision, **options)
        return model

    def fingerprint(self) -> str:
        """64 hex digits that only the same weights share (`fqgan.models.fingerprint`); of a tokenizer, those that
        its codes depend on."""
        return weights_fingerprint(self.state_dict(), self.meaning())

    def meaning(self) -> str:
        """What of the architecture changes what the model computes without a trace in the weights."""
        return ""

    def export(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors, all that `from_pretrained` needs; the folder."""
        folder = Path(as_path(folder, "folder"))
        if str(folder).startswith(hub.PREFIX):
            raise UserError(f"{folder} is no folder but an address: push_to_hub uploads to it")
        make_folder(folder)
        checkpoint.save_tensors(self.state_dict(), folder / MODEL)
        content = schema.to_dict(self.config)
        del content["format_version"]
        whole = {"format_version": FORMAT_VERSION, "kind": self.kind, "model": content, **self._facts()}
        write_text(folder / "config.json", json.dumps(whole, indent=2) + "\n")
        return folder

    def save_pretrained(self, folder: str | Path) -> Path:
        """Export with what was measured (eval.json) and a model card (README.md)."""
        folder = self.export(folder)
        if self.scores:
            write_text(folder / "eval.json", json.dumps(self.scores, indent=2) + "\n")
        write_text(folder / "README.md", self.card())
        return folder

    def card(self) -> str:
        """The text of its model card, with the hub's metadata in front."""
        facts = {**self._facts(), "fingerprint": self.fingerprint()}
        return model_card(self.config, num_parameters(self), facts, self.scores)

    def push_to_hub(
        self,
        repository: str,
        *,
        message: str = "Upload with fqgan",
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to `org/name`, which is made if it is missing; the commit's address.

        `UserError` without a login, and where the hub refuses or gives no answer.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.upload(Path(folder), repository, message, private, revision, token)

    @classmethod
    def of_source(cls, source: Source, weights: str = "auto", device: str | torch.device = "cpu") -> Self:
        """The model with the weights of a source, which it maps where it can: nothing is copied on a CPU."""
        with torch.device("meta"):
            model = cls(source.config)
        model.chosen = source.choose(weights)
        chosen = source.weights[model.chosen]
        tensors = chosen.read(model.state_dict(), device)
        checkpoint.check_fit(model, tensors, str(chosen.file))
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def _adopt(self, source: Source, *, device: str | torch.device, precision: str) -> None:
        """Take what a source says beside the weights."""
        self.provenance = source.provenance
        self.scores = shared_scores(source.scores)

    def _facts(self) -> dict[str, Any]:
        """What config.json says beside the architecture, JSON-ready."""
        return dict(self.provenance)


def shared_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """eval.json as it may leave this machine: paths become names."""
    paths = ("checkpoint", "data", "reference", "samples")
    return {k: Path(v).name if k in paths and isinstance(v, str) else v for k, v in scores.items()}
