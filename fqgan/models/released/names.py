"""The released files' tensor names from ours: one table of rules for tokenizers of any k, one for generators."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fqgan.base.errors import UserError

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class FactorNames:
    """What the released names of one factor's tensors contain."""

    adapter: str = ""
    suffix: str = ""
    head: str = ""
    """Feature-prediction head; empty: this factor cannot have one."""


@dataclass(frozen=True)
class Pair:
    """Tensors of ours that, put together along the first dimension, are the file's, put together."""

    ours: tuple[str, ...]
    released: tuple[str, ...]


# a factor's part: where its tensors are
_PARTS = {
    "adapter": "encoder.{names.adapter}.{rest}",
    "head": "{names.head}.{rest}",
    "norm": "encoder.norm_out{names.suffix}.{rest}",
    "conv": "encoder.conv_out{names.suffix}.{rest}",
    "projection": "quant_conv{names.suffix}.{rest}",
    "quantizer": "quantize{names.suffix}.embedding.weight",
}
# in adapters and heads
_TRANSFORMER: Rules = (
    (r"^positions\.table$", "positional_embedding"),
    (r"^class_token$", "class_embedding"),
    (r"^norm_in\.", "ln_pre."),
    (r"^norm_out\.", "ln_post."),
    (r"^blocks\.", "transformer."),
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.mlp_norm\.", ".ln_2."),
    (r"\.qkv\.", ".attn.in_proj_"),
    (r"\.attention_out\.", ".attn.out_proj."),
    (r"\.mlp_in\.", ".mlp.c_fc."),
    (r"\.mlp_out\.", ".mlp.c_proj."),
)
# in encoder and decoder, after the levels have got their names
_CONVOLUTIONAL: Rules = (
    (r"^post_quant\.", "post_quant_conv."),
    (r"^(en|de)coder\.middle\.", r"\1coder.mid."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"(\.mid\.1|\.attn\.\d+)\.out\.", r"\1.proj_out."),
)
_GENERATOR: Rules = (
    (r"^class_embedding\.", "cls_embedding.embedding_table."),
    (r"^aggregate\.", "aggregation_layer."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.blocks\.", "ar_head."),
    (r"^blocks\.", "layers."),
    (r"\.attention\.qkv\.", ".attention.wqkv."),
    (r"\.attention\.out\.", ".attention.wo."),
    (r"\.mlp_norm\.", ".ffn_norm."),
    (r"\.down\.", ".feed_forward.w2."),
    (r"\.gate_up\.", ".feed_forward.w1."),
)
# lists of the factors, which the files count from 1
_NUMBERED = {"code_embeddings": "tok_embeddings_{}", "head.outputs": "output_{}"}


def factor_names(k: int) -> tuple[FactorNames, ...]:
    """The released names of k factors; `UserError` above 3, for which there are none."""
    if k == 1:
        return (FactorNames(),)
    levels = {2: ("",), 3: ("mid", "high")}.get(k)
    if levels is None:
        raise UserError(f"the released layout has names for at most 3 factors, not for {k}")
    semantic = (
        FactorNames(
            adapter=f"semantic_head{level and '_' + level}.0",
            suffix=f"_sem{level and '_' + level}",
            head=f"{level}_sem_feat_pred" if level else "feat_pred_head",
        )
        for level in levels
    )
    return (FactorNames("visual_head.0", "_vis"), *semantic)


def tokenizer_pairs(names: Iterable[str], k: int) -> list[Pair]:
    """Where a tokenizer's tensors of these names are in a released file; `UserError` for a k without names."""
    factors, names = factor_names(k), list(names)
    last = max((int(found[1]) for name in names if (found := re.match(r"encoder\.levels\.(\d+)\.", name))), default=0)
    pairs = []
    for name in names:
        if name.endswith(".class_position"):
            continue  # the first row of the table below
        ours = (name,)
        if re.match(r"branches\.\d+\.head\.positions\.table$", name):
            ours = (name.replace("positions.table", "class_position"), name)
        pairs.append(Pair(ours, (_of_tokenizer(name, factors, last),)))
    return pairs


def generator_pairs(names: Iterable[str]) -> list[Pair]:
    """Where a generator's tensors of these names are in a released file."""
    pairs = []
    for name in names:
        released = _of_generator(name)
        halves = (released, released.replace(".w1.", ".w3.")) if ".gate_up." in name else (released,)
        pairs.append(Pair((name,), halves))
    return pairs


def _of_tokenizer(name: str, factors: Sequence[FactorNames], last_level: int) -> str:
    if found := re.match(r"branches\.(\d+)\.(\w+)\.(.*)", name):
        names, part, rest = factors[int(found[1])], found[2], found[3]
        return _PARTS[part].format(
            names=names, rest=_renamed(rest, _TRANSFORMER) if part in ("adapter", "head") else rest
        )
    if found := re.match(r"(en|de)coder\.levels\.(\d+)\.(\d+)\.(\w+)(.*)", name):
        name = _in_level(found[1], int(found[2]), int(found[3]), found[4], found[5], last_level)
    return _renamed(name, _CONVOLUTIONAL)


def _in_level(side: str, level: int, index: int, layer: str, rest: str, last_level: int) -> str:
    """A layer of a resolution level. At the lowest resolution residual blocks and attention take turns in our lists;
    the files have a list of each."""
    home = f"{side}coder.conv_blocks.{level}"
    if layer == "conv":
        return f"{home}.{'down' if side == 'en' else 'up'}sample.{layer}{rest}"
    lowest = level == (last_level if side == "en" else 0)
    kind = "attn" if layer in ("norm", "q", "k", "v", "out") else "res"
    return f"{home}.{kind}.{index // 2 if lowest else index}.{layer}{rest}"


def _of_generator(name: str) -> str:
    for ours, theirs in _NUMBERED.items():
        if found := re.match(rf"{re.escape(ours)}\.(\d+)\.", name):
            return f"{theirs.format(int(found[1]) + 1)}.{name[found.end() :]}"
    return _renamed(name, _GENERATOR)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
