"""The studies that train tokenizers: Table 3 and Table 5 of the paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig, TokenizerRunConfig, presets
from fqgan.config.presets import child
from fqgan.lab.studies.plan import Line, Ordering, Row, Study

# Table 3 trains for 10 epochs, Table 5 for 40 at a constant rate.
ABLATION_PAPER = child(presets.DUAL_DS16, train={"epochs": 10.0})
_QUIET: dict[str, Any] = {"image_every": 0, "validate_every": 0, "validation_images": 64, "keep_last": 1}
_CIFAR10 = child(presets.CIFAR10_DUAL, train={**_QUIET, "epochs": 5.0, "checkpoint_every": 500})
# half of the width
_SMALL = {"channels": 32, "z_channels": 32, "adapter_head_dim": 32, "feature_head_width": 64}
_CPU = child(_CIFAR10, model=_SMALL, train={"epochs": 0.8, "checkpoint_every": 100})
# the weights of what is ablated are the paper's; the small models' own are a fifth and less of them
_WEIGHTS = {name: getattr(ABLATION_PAPER.loss, name) for name in ("disentangle_weight", "representation_weight")}
ABLATION_CIFAR10 = child(_CIFAR10, loss=_WEIGHTS)
# 40,000 images: about five minutes a row on one CPU core
ABLATION_CPU = child(_CPU, loss=_WEIGHTS)
ABLATION_PRESETS = {"imagenet": ABLATION_PAPER, "cifar10": ABLATION_CIFAR10, "cifar10-cpu": ABLATION_CPU}

_CONSTANT = {"schedule": "constant", "lr": 1e-3}
SCALING_PAPER = child(presets.DUAL_DS16, train={"epochs": 40.0})
SCALING_CIFAR10 = child(_CIFAR10, optimizer=_CONSTANT, train={"epochs": 8.0})
SCALING_CPU = child(_CPU, optimizer=_CONSTANT)
SCALING_PRESETS = {"imagenet": SCALING_PAPER, "cifar10": SCALING_CIFAR10, "cifar10-cpu": SCALING_CPU}

PAPER_COLUMNS = {"rfid": "rFID ↓", "is": "IS ↑", "psnr": "PSNR ↑", "usage": "usage"}
# Table 3
_TABLE_3: dict[str, dict[str, float | str]] = {
    "vqgan": {"rfid": 3.71, "is": 50.05, "psnr": 20.56, "usage": "98%"},
    "vqgan-2k": {"rfid": 3.60, "is": 50.60, "psnr": 20.56, "usage": "84%"},
    "factorized": {"rfid": 2.00, "is": 54.72, "psnr": 22.21, "usage": "97%"},
    "disentangled": {"rfid": 1.84, "is": 55.04, "psnr": 22.04, "usage": "98%"},
    "represented": {"rfid": 1.73, "is": 55.00, "psnr": 21.61, "usage": "98%"},
    "both": {"rfid": 1.66, "is": 55.21, "psnr": 21.62, "usage": "98%"},
}
# Table 5: (k, fraction of 40 epochs) -> rFID, IS, PSNR
_TABLE_5 = {
    (2, 0.25): (1.66, 55.21, 21.62),
    (2, 0.5): (1.25, 56.39, 22.00),
    (2, 1.0): (0.94, 57.15, 22.02),
    (3, 0.25): (1.30, 56.41, 21.85),
    (3, 0.5): (0.92, 57.80, 22.67),
    (3, 1.0): (0.76, 58.05, 22.73),
}


def ablation(base: TokenizerRunConfig) -> Study:
    """Table 3 around a dual tokenizer with both regularisers, and a control that the paper lacks: a VQGAN with as many
    codes and adapter blocks as all the factors have together.

    `UserError` where the settings leave out what is to be ablated.
    """
    factors = base.model.factors
    if len(factors) < 2 or not base.loss.disentangle_weight or not any(factor.teacher for factor in factors):
        raise UserError(
            "an ablation starts from at least two factors, loss.disentangle_weight above 0 and a teacher: it takes "
            "them away one by one"
        )
    taught = [i for i, factor in enumerate(factors) if factor.teacher]
    untaught: dict[str, Any] = {f"model.factors.{i}.teacher": "" for i in taught}
    untaught |= {f"model.factors.{i}.teacher_dim": 0 for i in taught if factors[i].teacher_dim}
    untaught |= {f"model.factors.{i}.spatial_teacher": "" for i, each in enumerate(factors) if each.spatial_teacher}
    codes, total = factors[0].codebook_size, sum(factor.codebook_size for factor in factors)
    depths = sum(factor.adapter_depth for factor in factors)
    single = (FactorConfig(factors[0].name, total, factors[0].code_dim, adapter_depth=0),)
    plain = {"loss.disentangle_weight": 0.0}
    rows = [
        Row("both"),
        Row("represented", "both", plain),
        Row("disentangled", "both", untaught),
        Row("factorized", "disentangled", plain),
        Row("vqgan-2k", "factorized", {"model.factors": single}),
        Row("vqgan", "vqgan-2k", {"model.factors.0.codebook_size": codes}),
    ]
    sizes = " + ".join(f"{factor.codebook_size:,}" for factor in factors)
    labels = {
        "vqgan": f"VQGAN, {codes:,} codes",
        "vqgan-2k": f"VQGAN, {total:,} codes",
        "factorized": f"factorized, {sizes} codes",
        "disentangled": "+ disentanglement",
        "represented": "+ representation learning",
        "both": "+ both",
    }
    orderings = [
        Ordering(f"{total:,} codes over {codes:,}", "vqgan-2k", "vqgan"),
        Ordering("factorized over a single codebook", "factorized", "vqgan-2k"),
        Ordering("disentanglement over none", "disentangled", "factorized"),
        Ordering("representation learning over none", "represented", "factorized"),
        Ordering("both over none", "both", "factorized"),
        Ordering("both over disentanglement alone", "both", "disentangled"),
        Ordering("both over representation learning alone", "both", "represented"),
    ]
    if depths:
        name = "vqgan-adapter"
        rows.append(Row(name, "vqgan-2k", {"model.factors.0.adapter_depth": depths}))
        labels[name] = f"control: VQGAN, {total:,} codes, adapter of {depths} blocks"
        orderings.append(Ordering("a VQGAN with an adapter over one without", name, "vqgan-2k"))
        orderings.append(Ordering("factorized over a VQGAN with an adapter of the same size", "factorized", name))
    lines = tuple(Line(name, name, label, paper=_TABLE_3.get(name, {})) for name, label in labels.items())
    return Study(
        "ablation",
        "Ablation of factorized quantization (Table 3)",
        "tokenizer",
        tuple(rows),
        lines,
        tuple(orderings),
        PAPER_COLUMNS,
    )


def scaling(base: TokenizerRunConfig) -> Study:
    """Table 5: two, three and four factors of one codebook size, each at a quarter, half and all of one run.

    A third factor is that of the paper's triple tokenizer where the dual one has the paper's teachers (the middle one
    learns DINOv2, or halfway up the packaged network); further ones have no teacher.
    """
    factors = base.model.factors
    if len(factors) != 2:
        raise UserError(f"scaling starts from two factors and adds more, got {len(factors)}")
    visual, semantic = factors
    offline = semantic.teacher.startswith("efficientnet-lite0")
    size = semantic.teacher.partition("@")[2]
    middle = f"efficientnet-lite0:stage3{'@' + size if size else ''}" if offline else presets.DINO_S
    mid = replace(semantic, name="mid", teacher=middle if semantic.teacher else "", teacher_dim=0)
    triple: tuple[FactorConfig, ...] = (visual, mid, replace(semantic, name="high", teacher_dim=0))
    if semantic.teacher == presets.CLIP_L:
        triple = (visual, mid, replace(triple[2], teacher=presets.CLIP_B))
    quadruple = (*triple[:1], replace(visual, name="visual2"), *triple[1:])
    rows = (
        Row("k2", label="k = 2"),
        Row("k3", "k2", {"model.factors": triple}, label="k = 3"),
        Row("k4", "k3", {"model.factors": quadruple}, label="k = 4"),
    )
    paper = {key: PAPER_COLUMNS[key] for key in ("rfid", "is", "psnr")}
    lines, orderings = [], []
    for k in (2, 3, 4):
        for fraction in (0.25, 0.5, 1.0):
            numbers: dict[str, float | str] = dict(zip(paper, _TABLE_5.get((k, fraction), ()), strict=False))
            at = _length(base, fraction)
            lines.append(Line(_at(k, fraction), f"k{k}", f"k = {k}", at, fraction, paper=numbers))
        orderings += [
            Ordering(f"k = {k}: half of the training over a quarter", _at(k, 0.5), _at(k, 0.25)),
            Ordering(f"k = {k}: all of the training over half", _at(k, 1.0), _at(k, 0.5)),
        ]
    for fraction in (0.25, 0.5, 1.0):
        for k in (3, 4):
            claim = f"k = {k} over {k - 1}, {_length(base, fraction)}"
            orderings.append(Ordering(claim, _at(k, fraction), _at(k - 1, fraction)))
    title = "More factors and more training (Table 5)"
    return Study("scaling", title, "tokenizer", rows, tuple(lines), tuple(orderings), paper)


def _at(k: int, fraction: float) -> str:
    return f"k{k}-{fraction:.2f}"


def _length(base: TokenizerRunConfig, fraction: float) -> str:
    if base.train.steps:
        return f"{base.train.steps * fraction:,.0f} steps"
    return f"{base.train.epochs * fraction:g} epochs"
