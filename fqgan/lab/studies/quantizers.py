"""The study of quantizers and compositions at equal bits: what Table 1 of the paper cannot tell apart."""

from __future__ import annotations

import math
from typing import Any

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig, TokenizerRunConfig, presets
from fqgan.config.presets import child
from fqgan.lab.studies.plan import Line, Ordering, Row, Study
from fqgan.lab.studies.tokenizers import ABLATION_CIFAR10, ABLATION_CPU

_DEEPEST = 4  # bits of a channel of fsq: 16 levels


def _plain(base: TokenizerRunConfig, bits: int) -> TokenizerRunConfig:
    """Two factors of 2^bits codes without teachers and disentanglement: what is compared is the quantizer."""
    kept = base.model.factors[0]
    factors = tuple(FactorConfig(name, 2**bits, 8, max(1, kept.adapter_depth)) for name in ("first", "second"))
    return child(base, model={"factors": factors}, loss={"disentangle_weight": 0.0})


# 16 bits a position; 18 where a table of 2^18 codes is no burden
QUANTIZERS_PRESETS = {
    "imagenet": _plain(child(presets.DUAL_DS16, train={"epochs": 10.0}), 9),
    "cifar10": _plain(ABLATION_CIFAR10, 8),
    "cifar10-cpu": _plain(ABLATION_CPU, 8),
}


def quantizers(base: TokenizerRunConfig) -> Study:
    """Compositions and quantizers with as many bits a position as two factors of the base have, networks as large.

    One adapter of a shared projection, or of a single factor, is as deep as the base has in all. `UserError` where
    the base is not two equal factors of `vq` with a power of two of codes.
    """
    first, *others = base.model.factors
    bits = first.codebook_size.bit_length() - 1
    sizes = {(factor.codebook_size, factor.code_dim, factor.quantizer) for factor in base.model.factors}
    if len(others) != 1 or sizes != {(2**bits, first.code_dim, "vq")} or base.model.composition != "factorized":
        raise UserError(
            "study quantizers starts from two equal factors of vq with a power of two of codes, such as "
            "--model.factors.0.codebook-size 256 --model.factors.1.codebook-size 256"
        )
    if base.loss.disentangle_weight or any(factor.teachers for factor in base.model.factors):
        raise UserError("study quantizers compares quantizers: set loss.disentangle_weight to 0 and take no teacher")
    depth = sum(factor.adapter_depth for factor in base.model.factors)

    def factors(count: int, quantizer: str) -> dict[str, Any]:
        own = 2 * bits // count
        options: dict[str, Any] = {"code_dim": first.code_dim, "adapter_depth": depth, "quantizer": quantizer}
        options |= {"levels": levels(own)} if quantizer == "fsq" else {"codebook_size": 2**own}
        names = ("first", "second")[:count]
        changed: dict[str, Any] = {"model.factors": tuple(FactorConfig(name, **options) for name in names)}
        return changed | ({"model.composition": "product"} if count > 1 else {})

    residual = {**factors(2, "vq-euclidean"), "model.composition": "residual"}
    pair, whole = f"2 x {2**bits:,}", f"{2 ** (2 * bits):,}"
    rows = [
        Row("factorized", label=f"factorized, vq, {pair}"),
        Row("product", "factorized", factors(2, "vq"), label=f"product, vq, {pair}"),
        Row("product-euclidean", "factorized", factors(2, "vq-euclidean"), label=f"product, vq-euclidean, {pair}"),
        Row("residual", "factorized", residual, label=f"residual, vq-euclidean, {pair}"),
        Row(
            "residual-shared",
            "factorized",
            {**residual, "model.shared_codebook": True},
            label=f"residual, vq-euclidean, one table of {2**bits:,} twice",
        ),
    ]
    single = ("vq", "vq-euclidean", "simvq", "ibq", "fsq", "lfq", "bsq")
    rows += [Row(f"{name}-one", "factorized", factors(1, name), label=f"{name}, {whole}") for name in single]
    split = ("fsq", "lfq", "bsq")
    rows += [Row(f"{name}-two", "factorized", factors(2, name), label=f"{name} in two, {pair}") for name in split]
    orderings = [
        Ordering("factorized over product", "factorized", "product"),
        Ordering("product over residual, both Euclidean", "product-euclidean", "residual"),
        Ordering("a table each over one shared by the residuals", "residual", "residual-shared"),
        Ordering(f"factorized, {pair}, over one vq of {whole}", "factorized", "vq-one"),
        *(Ordering(f"{name} over vq, {whole} codes", f"{name}-one", "vq-one") for name in single[1:]),
        *(Ordering(f"{name} in two over {name} in one", f"{name}-two", f"{name}-one") for name in split),
    ]
    lines = tuple(Line(row.name, row.name, row.label) for row in rows)
    title = f"Quantizers and compositions at {2 * bits} bits a position"
    return Study("quantizers", title, "tokenizer", tuple(rows), lines, tuple(orderings))


def levels(bits: int) -> tuple[int, ...]:
    """Levels of fsq for 2^bits codes: as few channels of at most 16 levels as there can be, as even as they can be."""
    count = math.ceil(bits / _DEEPEST)
    return tuple(2 ** (bits // count + (i < bits % count)) for i in range(count))
