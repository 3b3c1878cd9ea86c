"""The generator whose weights a run starts from, and what of its class table stays."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.config import GeneratorRunConfig
from fqgan.data.tokens import TokenStore
from fqgan.engine.checkpoint import check_fit
from fqgan.engine.distributed import World
from fqgan.generator.model import FAR, load_generator
from fqgan.generator.tables import INITIAL_STD
from fqgan.models.find import find


def initial(config: GeneratorRunConfig, store: TokenStore, names: tuple[str, ...], world: World) -> FAR:
    """The generator to start from, with a class table for the run's classes, which have these names; `UserError` where
    its weights don't fit or its codes are of another tokenizer."""
    where = f"--init {config.init}"
    if find(config.init, "generator").facts.get("tokenizer", "") not in ("", store.tokenizer_fingerprint):
        raise UserError(f"{where} was trained on another tokenizer's codes than those of {store.name}")
    model = load_generator(config.init, with_tokenizer=False)
    if (legacy := model.config.legacy) != config.model.legacy:
        raise UserError(
            f"{where} was trained with{'' if legacy else 'out'} model.legacy, the rotary rows of the released models: "
            f"add {'--model.legacy' if legacy else '--model.no-legacy'}"
        )
    with torch.device("meta"):
        check_fit(FAR(replace(config.model, num_classes=model.null_class)), model.state_dict(), where)
    pairs = _kept_classes(model, config.model.num_classes, names)
    if pairs is not None:
        if world.is_main:
            fresh = config.model.num_classes - len(pairs)
            say(
                f"{where}: its classes are not those of {store.name}: the null class and {len(pairs)} classes of the "
                f"same name keep their rows of the class table, {fresh} start afresh"
            )
        _exchange_classes(model, config.model.num_classes, pairs, config.train.seed)
    return model


def _kept_classes(model: FAR, count: int, names: tuple[str, ...]) -> dict[int, int] | None:
    """Class -> the class of the same name in the generator; None where its classes are the same as far as is known."""
    own = {name: label for label, name in enumerate(model.label_names)}
    if model.null_class == count and (not own or not names or tuple(own) == names):
        return None
    return {label: own[name] for label, name in enumerate(names) if name in own}


def _exchange_classes(model: FAR, count: int, kept: dict[int, int], seed: int) -> None:
    """Give a generator a table of `count` classes: rows that are kept, the null class's, and new ones for the rest."""
    before = model.class_embedding.weight.detach()
    table = torch.empty(count + 1, before.shape[1])
    table.normal_(std=INITIAL_STD, generator=torch.Generator().manual_seed(seed))  # the same on every rank
    table[count] = before[model.null_class]
    for label, old in kept.items():
        table[label] = before[old]
    model.class_embedding = nn.Embedding.from_pretrained(table)
