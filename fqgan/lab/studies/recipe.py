"""The studies of the recipe: from the paper's to ours, one lever at a time and then together, at equal images seen."""

from __future__ import annotations

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
_FROZEN: dict[str, Any] = {
    "discriminator.kind": "frozen",
    "discriminator.layers": 3,
    "discriminator.backbone": "efficientnet-lite0@32",
    "discriminator.augment": ("colour", "translation", "cutout"),
    "discriminator.weight": 0.2,
    "discriminator.adaptive": True,
    "discriminator.start": 100,
    "discriminator.warmup_steps": 100,
    "discriminator.channels": 32,
}
_COSINE = Lever("cosine", "cosine rate", {"optimizer.schedule": "cosine"}, kept=False)
TOKENIZER_LEVERS = (
    Lever("muon", "Muon", {"optimizer.kind": "muon", "optimizer.lr": 3e-3}),
    Lever("weights", "regularisers' weights 0.02", {f"loss.{each}_weight": 0.02 for each in _REGULARISERS}),
    # pays for the smaller batch: the teacher then shares the perceptual distance's pass
    Lever("teacher", "teacher at 32 pixels", {"model.factors.1.teacher": "efficientnet-lite0@32"}),
    Lever("batch", "half of the batch", {"train.batch": 32}),
    _COSINE,
    Lever("cooldown", "rate that falls in the last fifth", {"optimizer.schedule": "cooldown"}, kept=False),
    Lever("rotation", "rotation trick", {"quantizer.gradient": "rotation"}, kept=False),
    Lever("perturb", "a tenth of the codes decoded as near ones", {"latent.perturb_share": 0.1}, kept=False),
    Lever("mask", "a fifth of the images decoded from their first factor", {"latent.mask_share": 0.2}, kept=False),
    Lever(
        "independence",
        "independence (HSIC) in place of Eq. 7",
        {"loss.independence_weight": 0.1, "loss.disentangle_weight": 0.0},
        kept=False,
    ),
    Lever(
        "spatial",
        "spatial teacher",
        {"model.factors.1.spatial_teacher": "efficientnet-lite0:stage4@32", "loss.spatial_weight": 0.1},
        kept=False,
    ),
    Lever("frozen", "discriminator on frozen features, DiffAug", _FROZEN, kept=False),
)
GENERATOR_PRESETS = {
    "cifar10": child(HEADS_CIFAR10, model={"dropout": 0.1}, optimizer=_ADAM),
    "cifar10-cpu": child(HEADS_CPU, model={"dropout": 0.1}, optimizer=_ADAM),
}
GENERATOR_LEVERS = (
    Lever("muon", "Muon", {"optimizer.kind": "muon", "optimizer.lr": 3e-3}),
    Lever("vectors", "rows that near codes share", {"model.code_vectors": True}),
    Lever("dropout", "no dropout", {"model.dropout": 0.0}),
    Lever("heads", "four attention heads", {"model.heads": 4}),
    Lever("clusters", "cross-entropy over 64 clusters", {"train.cluster_weight": 0.3, "train.clusters": (64,)}),
    Lever("target", "embedding of the position that is predicted", {"model.target_positions": True}),
    Lever(
        "cooldown",
        "rate that falls in the last 40 %",
        {"optimizer.schedule": "cooldown", "optimizer.cooldown": 0.4},
    ),
    # a third more processor time each, and no gain alone
    Lever("qk-norm", "QK-norm", {"model.qk_norm": True}, kept=False),
    Lever("batch", "half of the batch", {"train.batch": 32}, kept=False),
    _COSINE,
    Lever(
        "orders", "random orders first", {"train.random_order": (0.5, 0.75), "model.target_positions": True}, kept=False
    ),
    Lever("masked", "masked head", {"model.head": "masked"}, kept=False),
)


def recipe(base: Run, levers: Sequence[Lever]) -> Study:
    """The base, each lever alone, those that are kept together, and each other one on top of these; levers that the
    base has already are left out.

    A generator's rows are drawn from without guidance and at the base's scale.
    """
    levers = [lever for lever in levers if any(value_at(base, key) != value for key, value in lever.changes.items())]
    rows = [Row("paper", label="the paper's recipe")]
    rows += [Row(lever.name, "paper", lever.changes, label=f"+ {lever.label}") for lever in levers]
    kept, others = ([lever for lever in levers if lever.kept is each] for each in (True, False))
    if len(kept) > 1:
        together = {key: value for lever in kept for key, value in lever.changes.items()}
        rows.append(Row("next", "paper", together, label="together"))
    if kept:
        named = {row.name: row for row in rows}
        best = named.get("next") or named[kept[0].name]
        rows += [
            Row(f"{best.name}-{each.name}", best.name, each.changes, label=f"{best.label} + {each.label}")
            for each in others
        ]
    labels = {row.name: row.label for row in rows}
    orderings, lines = [], []
    kind, samplings = "tokenizer", [("", "", dict[str, Any]())]
    if not isinstance(base, TokenizerRunConfig):
        own = base.sampling.values
        kind = "generator"
        samplings = [("-unguided", "no guidance", {**own, "cfg_scale": (1.0,)}), ("-guided", "guidance", own)]
    for suffix, at, sampling in samplings:
        for row in rows:
            lines.append(Line(row.name + suffix, row.name, row.label, at, sampling=sampling))
            if row.parent:
                claim = f"{row.label} over {labels[row.parent]}{', ' if at else ''}{at}"
                orderings.append(Ordering(claim, row.name + suffix, row.parent + suffix))
    return Study("recipe", f"The recipe of a {kind}", kind, tuple(rows), tuple(lines), tuple(orderings))
