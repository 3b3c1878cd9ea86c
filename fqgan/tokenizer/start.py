"""Weights that a tokenizer's training starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.config import TokenizerConfig
from fqgan.engine.checkpoint import check_fit
from fqgan.models.find import find
from fqgan.tokenizer.model import FactorizedTokenizer

_HEADS = (("head", "teacher", "feature-prediction head"), ("spatial", "spatial_teacher", "spatial head"))
_AVERAGES = "logit_means"  # LeCam's, which only a discriminator that was trained with it has


@dataclass
class Start:
    """Weights from elsewhere."""

    summary: str
    tensors: Mapping[str, Tensor]
    """Of the tokenizer; heads may be missing, and start at random then."""
    discriminator: Mapping[str, Tensor]
    """Empty where there is none."""
    codes_of: str
    """Fingerprint of the tokenizer whose codes these are."""

    @classmethod
    def of(cls, path: str, config: TokenizerConfig) -> Start:
        """From a run, an export, a released file or the hub: the moving average where there is one.

        All tensors must fit a tokenizer of `config`, but for heads: their teachers may be others.
        `UserError` names the first one that doesn't fit.
        """
        source = find(path, "tokenizer")
        found = FactorizedTokenizer.of_source(source)
        tensors, codes_of = dict(found.state_dict()), found.config.codes_of or found.fingerprint()
        with torch.device("meta"):
            model = FactorizedTokenizer(config)
        own, heads = model.state_dict(), ""
        for (i, factor), (part, field, what) in product(enumerate(config.factors), _HEADS):
            prefix = f"branches.{i}.{part}."
            if _shapes(own, prefix) == _shapes(tensors, prefix):
                continue
            for name in [name for name in tensors if name.startswith(prefix)]:
                del tensors[name]
            heads += f"; {'a new' if getattr(factor, field) else 'no'} {what} for {factor.name}"
            # stands in for what stays at random: the rest must fit
            tensors |= {name: tensor for name, tensor in own.items() if name.startswith(prefix)}
        check_fit(model, tensors, f"--init {path}")
        tensors = {name: tensor for name, tensor in tensors.items() if not tensor.is_meta}
        summary = f"starting from {path}, {source.choose()} weights{heads}"
        return cls(summary, tensors, source.discriminator() if source.discriminator else {}, codes_of)

    def start(self, model: nn.Module) -> None:
        """Set a tokenizer's weights."""
        model.load_state_dict(self.tensors, strict=False)

    def start_discriminator(self, module: nn.Module, note: Callable[[str], None] | None = None) -> None:
        """Set a discriminator's weights, if there are some and they fit; `note` gets a line that says which."""
        own = module.state_dict()
        tensors = {name: tensor for name, tensor in self.discriminator.items() if name != _AVERAGES or name in own}
        if _AVERAGES in own:
            tensors.setdefault(_AVERAGES, own[_AVERAGES])
        what = "its discriminator goes on, too"
        try:
            if not self.discriminator:
                raise UserError("there is none")
            check_fit(module, tensors, "the file's")
            module.load_state_dict(tensors)
        except UserError as error:
            what = f"with a new discriminator: {error}"
        if note:
            note(what)


def _shapes(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith(prefix)}
