"""The studies of the recipe: from the paper's to ours, one lever at a time and then together, at equal images seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.lab.studies.generators import HEADS_CIFAR10, HEADS_CPU
from fqgan.lab.studies.plan import Line, Ordering, Row, Run, Study, value_at
from fqgan.lab.studies.tokenizers import ABLATION_CIFAR10, ABLATION_CPU


@dataclass(frozen=True)
class Lever:
    """A change of the recipe that costs neither parameters nor images."""

    name: str
    label: str
    changes: Mapping[str, Any]
    kept: bool = True
    """Whether it is among those that make up the last row: it gained alone (docs/results.md)."""


# The paper's optimizer (section 4.1: Adam, a constant rate), at the best of four rates on CIFAR-10 (docs/results.md).
_ADAM: dict[str, Any] = {"kind": "adam", "lr": 4e-3, "schedule": "constant"}
TOKENIZER_PRESETS = {
    "cifar10": child(ABLATION_CIFAR10, optimizer=_ADAM),
    "cifar10-cpu": child(ABLATION_CPU, optimizer=_ADAM),
}
_REGULARISERS = ("disentangle", "representation")
TOKENIZER_LEVERS = (
    Lever("muon", "Muon", {"optimizer.kind": "muon", "optimizer.lr": 3e-3}),
    Lever("weights", "regularisers' weights 0.02", {f"loss.{each}_weight": 0.02 for each in _REGULARISERS}),
    # pays for the smaller batch: the teacher then shares the perceptual distance's pass
    Lever("teacher", "teacher at 32 pixels", {"model.factors.1.teacher": "efficientnet-lite0@32"}),
    Lever("batch", "half of the batch", {"train.batch": 32}),
    Lever("cosine", "cosine rate", {"optimizer.schedule": "cosine"}, kept=False),
    Lever("cooldown", "rate that falls in the last fifth", {"optimizer.schedule": "cooldown"}, kept=False),
)
GENERATOR_PRESETS = {
    "cifar10": child(HEADS_CIFAR10, model={"dropout": 0.1}, optimizer=_ADAM),
    "cifar10-cpu": child(HEADS_CPU, model={"dropout": 0.1}, optimizer=_ADAM),
}
GENERATOR_LEVERS = (
    Lever("muon", "Muon", {"optimizer.kind": "muon", "optimizer.lr": 3e-3}),
    # a third more processor time each, and no gain alone
    Lever("qk-norm", "QK-norm", {"model.qk_norm": True}, kept=False),
    Lever("batch", "half of the batch", {"train.batch": 32}, kept=False),
    Lever("cosine", "cosine rate", {"optimizer.schedule": "cosine"}, kept=False),
    Lever("cooldown", "rate that falls in the last fifth", {"optimizer.schedule": "cooldown"}, kept=False),
    Lever("dropout", "no dropout", {"model.dropout": 0.0}, kept=False),
    Lever(
        "orders", "random orders first", {"train.random_order": (0.5, 0.75), "model.target_positions": True}, kept=False
    ),
)


def recipe(base: Run, levers: Sequence[Lever]) -> Study:
    """The base, each lever alone, and those that are kept together; levers that the base has already are left out.

    A generator's rows are drawn from without guidance and at the base's scale.
    """
    levers = [lever for lever in levers if any(value_at(base, key) != value for key, value in lever.changes.items())]
    rows = [Row("paper", label="the paper's recipe")]
    rows += [Row(lever.name, "paper", lever.changes, label=f"+ {lever.label}") for lever in levers]
    kept = [lever for lever in levers if lever.kept]
    if len(kept) > 1:
        together = {key: value for lever in kept for key, value in lever.changes.items()}
        rows.append(Row("next", "paper", together, label="together"))
    orderings, lines = [], []
    kind, samplings = "tokenizer", [("", "", dict[str, Any]())]
    if not isinstance(base, TokenizerRunConfig):
        own = {field.name: getattr(base.sampling, field.name) for field in dataclasses.fields(base.sampling)}
        kind = "generator"
        samplings = [("-unguided", "no guidance", {**own, "cfg_scale": (1.0,)}), ("-guided", "guidance", own)]
    for suffix, at, sampling in samplings:
        for row in rows:
            lines.append(Line(row.name + suffix, row.name, row.label, at, sampling=sampling))
            if row.parent:
                claim = f"{row.label} over the paper's recipe{', ' if at else ''}{at}"
                orderings.append(Ordering(claim, row.name + suffix, f"paper{suffix}"))
    return Study("recipe", f"The recipe of a {kind}", kind, tuple(rows), tuple(lines), tuple(orderings))
