"""What a generator brings along beside its weights: its tokenizer, the names of its classes, its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fqgan.base.errors import UserError
from fqgan.base.inputs import as_count, as_kind, as_path
from fqgan.base.printing import say
from fqgan.config import GeneratorConfig
from fqgan.models.find import CARRIED, Source
from fqgan.models.pretrained import Pretrained
from fqgan.tokenizer.foreign import ForeignTokenizer, made_by
from fqgan.tokenizer.load import load_matching_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.protocol import Tokenizer, own_grid


class Carrying(Pretrained):
    """A generator on disk and on the hub, with its tokenizer. `config.grid` may change when it is loaded."""

    kind = "generator"

    def __init__(self, config: GeneratorConfig):
        super().__init__(config)
        self.label_names: tuple[str, ...] = ()
        """Names of the classes, if they have any."""
        self._carried: list[Tokenizer] = []  # in a list: its weights are no part of the generator's
        self._made_by: dict[str, str] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer whose codes these are; `UserError` if there is none."""
        if not self._carried and (address := self._made_by.get("tokenizer_address")):
            raise UserError(
                f"the codes of this generator are those of {address}, a tokenizer by address: name it as the "
                f"tokenizer, --tokenizer {address}, which runs its code"
            )
        if not self._carried:
            raise UserError("this generator carries no tokenizer: give load_generator one")
        return self._carried[0]

    def carry(self, tokenizer: Tokenizer) -> None:
        """Take a tokenizer along; `UserError` where its codebooks are of other sizes."""
        if not isinstance(tokenizer, ForeignTokenizer):
            as_kind(tokenizer, FactorizedTokenizer, "tokenizer")
        sizes = tokenizer.codebook_sizes
        if sizes != self.config.codebook_sizes:
            texts = (" x ".join(map(str, each)) for each in (sizes, self.config.codebook_sizes))
            raise UserError("the tokenizer has {} codes, the generator {}: they don't belong together".format(*texts))
        self._carried, self._made_by = [tokenizer], made_by(tokenizer)

    @property
    def has_tokenizer(self) -> bool:
        """Whether `tokenizer` is there."""
        return bool(self._carried)

    def export(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors and, if it carries one, `tokenizer/`, where a tokenizer of others only
        says what it was; the folder."""
        if self.has_tokenizer:
            self.tokenizer.export(Path(as_path(folder, "folder")) / CARRIED)
        return super().export(folder)

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "label_names": self.label_names, **self._made_by}

    def _adopt(
        self,
        source: Source,
        *,
        device: str | torch.device,
        precision: str,
        tokenizer: str | Path | None = None,
        with_tokenizer: bool = True,
        grid: Sequence[int] | None = None,
    ) -> None:
        super()._adopt(source, device=device, precision=precision)
        self.label_names = tuple(source.facts.get("label_names", ()))
        known = source.facts.get("tokenizer", "")
        if address := source.facts.get("tokenizer_address", ""):
            self._made_by = {"tokenizer": known, "tokenizer_address": address}
        path = source.carried if tokenizer in (None, "") else as_path(tokenizer, "tokenizer")
        if path and with_tokenizer:
            self.carry(load_matching_tokenizer(path, known, str(source.path), device, precision))
        self._settle_grid(str(source.path), source.facts.get("grid_known", True), grid)

    def _settle_grid(self, name: str, known: bool, given: Sequence[int] | None) -> None:
        """The token grid is in neither names nor shapes: it is what the caller says, or the tokenizer's, where the file
        has no word on it. `UserError` where the caller contradicts it."""
        own = grid = self.config.grid
        if given:
            grid = tuple(as_count(side, "grid", 1, 2**15) for side in given)
            if len(grid) != 2:
                raise UserError(f"a grid is a height and a width in positions, got {len(grid)} number(s)")
        elif not known and self.has_tokenizer:
            grid = own_grid(self.tokenizer)
        elif not known:
            say(f"fqgan: warning: {name} does not say its token grid: taking {own[0]} x {own[1]}", error=True)
        if known and grid != own:
            raise UserError(f"{name} says that its token grid is {own[0]} x {own[1]}, not {' x '.join(map(str, grid))}")
        self.config = replace(self.config, grid=grid)
