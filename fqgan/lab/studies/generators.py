"""The studies that train generators: Table 4 and Fig. 8 of the paper."""

from __future__ import annotations

from typing import Any

from fqgan.base.errors import UserError
from fqgan.config import GeneratorRunConfig, presets
from fqgan.config.presets import child
from fqgan.lab.studies.plan import Line, Ordering, Row, Study

# Table 4: FAR-Large with guidance 1.75, drawing from the 4,096 and the 8,192 most probable of 16,384 codes.
HEADS_PAPER = child(presets.FAR_LARGE, sampling={"cfg_scale": (1.75,), "top_k": (4096,)})
_QUIET: dict[str, Any] = {"image_every": 0, "validate_every": 250, "checkpoint_every": 250, "keep_last": 1}
_RECIPE: dict[str, Any] = {
    "model": {"dropout": 0.0},
    "optimizer": {"kind": "muon", "lr": 3e-3},
    "sampling": {"cfg_scale": (1.75,), "top_k": (256,)},  # a quarter of 1,024 codes, as there
}
HEADS_CIFAR10 = child(presets.FAR_SMALL, **_RECIPE, train={**_QUIET, "epochs": 5.0})
# about three minutes a row on one CPU core
HEADS_CPU = child(presets.FAR_TINY, **_RECIPE, train={**_QUIET, "epochs": 0.5})
HEADS_PRESETS = {"imagenet": HEADS_PAPER, "cifar10": HEADS_CIFAR10, "cifar10-cpu": HEADS_CPU}
# linear, MLP, AR head: gFID at the two settings
_TABLE_4 = {"linear": (5.19, 6.90), "mlp": (5.59, 8.88), "ar": (4.37, 3.74)}

TRIPLE_SCALE = 1.75
"""Guidance of the triple codes' curves; that of the dual ones is the preset's (2.0)."""
_SIZES = ("width", "depth", "heads", "head_depth")
CURVES_PAPER = presets.FAR_BASE
_STEADY = child(
    presets.FAR_TINY, optimizer={"schedule": "constant", "kind": "muon", "lr": 1e-3}, model={"dropout": 0.0}
)
CURVES_CIFAR10 = child(_STEADY, train={**_QUIET, "epochs": 12.0})
# 0.5 M parameters, and `far-tiny` with 1.6 M as the larger one
CURVES_CPU = child(_STEADY, model={"width": 64, "depth": 3, "heads": 1}, train={**_QUIET, "epochs": 0.6})
CURVES_PRESETS = {"imagenet": CURVES_PAPER, "cifar10": CURVES_CIFAR10, "cifar10-cpu": CURVES_CPU}


def _size(config: GeneratorRunConfig) -> dict[str, int]:
    return {f"model.{name}": getattr(config.model, name) for name in _SIZES}


LARGER = {
    "imagenet": _size(presets.FAR_LARGE),
    "cifar10": _size(presets.FAR_SMALL),
    "cifar10-cpu": _size(presets.FAR_TINY),
}
"""Preset -> the larger model beside its own."""
POINTS = 6
"""Points of a curve: every 50 epochs of 300."""
# Appendix E: the best gFID of each curve of Fig. 8
_FIG_8 = {"dual-base": 3.38, "dual-large": 3.08, "triple-base": 3.84, "triple-large": 3.09}


def heads(base: GeneratorRunConfig) -> Study:
    """Table 4: three heads, each sampled from the `sampling.top_k` most probable codes and from twice as many.

    `UserError` where that names no such number, or several.
    """
    if len(base.sampling.top_k) != 1 or base.sampling.top_k[0] < 1:
        raise UserError(
            "study heads compares two top-k settings, --sampling.top-k and twice that: name one number above 0, such "
            "as a quarter of the codebook"
        )
    first = base.sampling.top_k[0]
    labels = {"linear": "k linear classifiers", "mlp": "k MLP classifiers", "ar": "factorized AR head"}
    rows = [Row("ar", "", {"model.head": "ar"})]
    rows += [Row(name, "ar", {"model.head": name}) for name in ("linear", "mlp")]
    lines, orderings = [], []
    for name, label in labels.items():
        for i, top_k in enumerate((first, 2 * first)):
            sampling = {**base.sampling.values, "top_k": (top_k,)}
            paper = {"top_k": (4096, 8192)[i], "gfid": _TABLE_4[name][i]}
            lines.append(Line(f"{name}-{top_k}", name, label, f"top-k {top_k:,}", 1.0, sampling, paper))
    for top_k in (first, 2 * first):
        for name in ("linear", "mlp"):
            claim = f"AR head over {labels[name]}, top-k {top_k:,}"
            orderings.append(Ordering(claim, f"ar-{top_k}", f"{name}-{top_k}"))
    paper_columns = {"top_k": "top-k", "gfid": "gFID ↓"}
    title = "Heads of the generator (Table 4)"
    return Study(
        "heads", title, "generator", tuple(rows), tuple(lines), tuple(orderings), paper_columns, base.sampling.values
    )


def curves(base: GeneratorRunConfig, larger: dict[str, int], triple: str, triple_validation: str = "") -> Study:
    """Fig. 8: two sizes on the codes of two tokenizers, measured on the way.

    Args:
        larger: settings of the larger model.
        triple: token store of the second tokenizer, and that of its held-out images.

    Raises:
        UserError: no second store.
    """
    if not triple:
        raise UserError("--triple is missing: the token store of a tokenizer with three factors")
    codes = {"data": triple, "validation": triple_validation}
    scale = {**base.sampling.values, "cfg_scale": (TRIPLE_SCALE,)}
    rows = (
        Row("dual-base", label="dual, smaller"),
        Row("dual-large", "dual-base", larger, label="dual, larger"),
        Row("triple-base", "dual-base", codes, label="triple, smaller"),
        Row("triple-large", "triple-base", larger, label="triple, larger"),
    )
    lines = []
    for row in rows:
        sampling = scale if row.name.startswith("triple") else base.sampling.values
        for i in range(1, POINTS + 1):
            paper: dict[str, float | str] = {"gfid": _FIG_8[row.name]} if i == POINTS else {}
            lines.append(Line(f"{row.name}-{i}", row.name, row.label, f"{i}/{POINTS}", i / POINTS, sampling, paper))
    orderings = [
        Ordering(f"{kind}: the larger model over the smaller one", f"{kind}-large-{POINTS}", f"{kind}-base-{POINTS}")
        for kind in ("dual", "triple")
    ]
    orderings += [
        Ordering(f"dual over triple, {size} model", f"dual-{name}-{POINTS}", f"triple-{name}-{POINTS}")
        for size, name in (("smaller", "base"), ("larger", "large"))
    ]
    orderings += [
        Ordering(f"{row.label}: all of the training over half", f"{row.name}-{POINTS}", f"{row.name}-{POINTS // 2}")
        for row in rows
    ]
    title = "Training of the generator (Fig. 8)"
    paper_columns = {"gfid": "best gFID ↓"}
    return Study(
        "curves", title, "generator", rows, tuple(lines), tuple(orderings), paper_columns, base.sampling.values
    )
